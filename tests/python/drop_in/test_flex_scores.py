"""flex_attention with score_mods: results, gradients, and what the kernels compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor

from support.flex_reference import (
    BATCH,
    HEADS,
    LENGTH,
    Mod,
    assert_close,
    block_mask,
    call,
    dense,
    inputs,
    watch,
    with_gradients,
)
from support.problems import DTYPES, DTYPES_16BIT, dtype_name

# The kernels' instruction sets are tested with the operator.
pytestmark = pytest.mark.once


@dataclass
class Captured:
    """Tensors with gradients that score_mods read."""

    slopes: Tensor
    bias: Tensor
    head_bias: Tensor
    pair_bias: Tensor
    key_bias: Tensor
    row_bias: Tensor
    distances: Tensor
    head_distances: Tensor
    temperature: Tensor

    @staticmethod
    def make(dtype: torch.dtype = torch.float64) -> Captured:
        def leaf(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()

        return Captured(
            slopes=leaf(HEADS),
            bias=leaf(BATCH, HEADS, LENGTH, LENGTH),
            head_bias=leaf(HEADS, LENGTH + 3, LENGTH + 2),  # more than are read
            pair_bias=leaf(LENGTH, LENGTH),
            key_bias=leaf(BATCH, LENGTH),
            row_bias=leaf(LENGTH, HEADS),
            distances=leaf(2 * LENGTH),
            head_distances=leaf(HEADS, 17),
            temperature=leaf(),
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def causal(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return q >= kv


def capped_with_terms(t: Captured) -> Mod:
    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        capped = 3.0 * torch.tanh(s * 2 / 3.0)
        return t.pair_bias[q, kv] + (capped - t.slopes[h] * (q - kv).abs())

    return score_mod


class Relative(torch.nn.Module):
    """A score_mod with parameters, as a model has it."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s + self.table[h, (q - kv).clamp(-8, 8) + 8]


def scaled_by(factor: Tensor, s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return s * factor


# name: (who computes it, whether with a causal block_mask, score_mod)
SCORE_MODS: dict[str, tuple[str, bool, Callable[[Captured], Mod]]] = {
    "same": ("kernels", True, lambda t: lambda s, b, h, q, kv: s),
    "factor": ("kernels", False, lambda t: lambda s, b, h, q, kv: 2 * s / 3),
    "constant": ("kernels", False, lambda t: lambda s, b, h, q, kv: s * torch.tensor(0.5).double()),
    "softcap": ("kernels", True, lambda t: lambda s, b, h, q, kv: 2 * torch.tanh(s / 2)),
    "tanh": ("kernels", False, lambda t: lambda s, b, h, q, kv: s.tanh()),
    "ALiBi": (
        "kernels",
        False,
        lambda t: lambda s, b, h, q, kv: s - t.slopes[h] * (q - kv).abs(),
    ),
    "ALiBi of torch's examples": (
        "kernels",
        True,
        lambda t: lambda s, b, h, q, kv: s + t.slopes[h] * (kv - q),
    ),
    "the same without a mask": (
        "blocks",
        False,
        lambda t: lambda s, b, h, q, kv: s + t.slopes[h] * (kv - q),
    ),
    "ALiBi of one slope": (
        "kernels",
        True,
        lambda t: lambda s, b, h, q, kv: s + (kv - q) * torch.tensor(0.125).double(),
    ),
    "distances": ("kernels", True, lambda t: lambda s, b, h, q, kv: s + (kv - q)),
    "bias": ("kernels", True, lambda t: lambda s, b, h, q, kv: s + t.bias[b, h, q, kv]),
    "bias of any batch": (
        "kernels",
        False,
        lambda t: lambda s, b, h, q, kv: t.head_bias[h, q, kv] + s,
    ),
    "transposed bias": ("kernels", False, lambda t: lambda s, b, h, q, kv: s + t.pair_bias[kv, q]),
    "bias of keys": ("kernels", True, lambda t: lambda s, b, h, q, kv: s - t.key_bias[b, kv]),
    "bias of rows": (
        "kernels",
        True,
        lambda t: lambda s, b, h, q, kv: s + (t.row_bias * 2)[q, h].exp(),
    ),
    "all": ("kernels", False, capped_with_terms),
    "mask": (
        "kernels",
        False,
        lambda t: lambda s, b, h, q, kv: torch.where(q >= kv, s + t.key_bias[b, kv], -torch.inf),
    ),
    "bias times a number": (
        "blocks",
        True,
        lambda t: lambda s, b, h, q, kv: s + 2 * t.bias[b, h, q, kv],
    ),
    "bias inside softcap": (
        "blocks",
        False,
        lambda t: lambda s, b, h, q, kv: torch.tanh((s + t.pair_bias[q, kv]) / 2) * 2,
    ),
    "two biases": (
        "blocks",
        True,
        lambda t: lambda s, b, h, q, kv: s + t.bias[b, h, q, kv] + t.key_bias[b, kv],
    ),
    "relative": ("blocks", True, lambda t: lambda s, b, h, q, kv: s + t.distances[q - kv + LENGTH]),
    "relative, a module": ("blocks", False, lambda t: Relative(t.head_distances)),
    "temperature": ("blocks", True, lambda t: functools.partial(scaled_by, t.temperature)),
    "sigmoid": (
        "blocks",
        False,
        lambda t: lambda s, b, h, q, kv: (s + t.slopes[h]).sigmoid().log(),
    ),
    "product": (
        "blocks",
        True,
        lambda t: lambda s, b, h, q, kv: s * t.pair_bias[q, kv] * t.distances[kv],
    ),
    "without the score": (
        "blocks",
        False,
        lambda t: lambda s, b, h, q, kv: t.distances[q - kv + LENGTH] * 2,
    ),
    "detached": (
        "blocks",
        False,
        lambda t: lambda s, b, h, q, kv: s.detach() + t.slopes.detach()[h] * t.distances[kv],
    ),
    "chequered": (
        "blocks",
        False,
        lambda t: lambda s, b, h, q, kv: torch.where((q + kv) % 2 == 0, s, -torch.inf),
    ),
}
every_score_mod = pytest.mark.parametrize("name", SCORE_MODS)


@every_score_mod
def test_score_mods_match_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected_path, is_causal, make = SCORE_MODS[name]
    tensors, captured, paths = inputs(), Captured.make(), watch(monkeypatch)
    score_mod, leaves = make(captured), [*tensors, *captured.leaves]
    mask = block_mask(causal) if is_causal else None
    found = call(tensors, score_mod, mask, scale=0.7, return_lse=True)
    assert paths.only == expected_path
    expected = dense(*tensors, score_mod, causal if is_causal else None, scale=0.7)
    assert_close(with_gradients(found, leaves), with_gradients(expected, leaves))


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """The dtypes of results and gradients, and their values, with captured tensors of `dtype`."""
    _, is_causal, make = SCORE_MODS[name]
    tensors, captured = inputs(dtype=dtype), Captured.make(dtype)
    leaves = [*tensors, *captured.leaves]
    out, lse = call(
        tensors, make(captured), block_mask(causal) if is_causal else None, return_lse=True
    )
    wide = dtype if dtype in DTYPES else torch.float32
    assert (out.dtype, lse.dtype) == (dtype, wide)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in (out, lse)]
    grads = torch.autograd.grad([out, lse], leaves, weights, allow_unused=True)
    assert all(x is None or x.dtype == dtype for x in grads)

    # All in float64: torch sums the gradients of 16-bit elements in their own dtype.
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = dense(*exact[:3], make(Captured(*exact[3:])), causal if is_causal else None)
    expected_grads = torch.autograd.grad(
        expected, exact, [each.double() for each in weights], allow_unused=True
    )
    assert_close([out, lse, *grads], [*expected, *expected_grads], dtype)


@pytest.mark.parametrize("name", ["all", "ALiBi of torch's examples", "relative", "product"])
def test_float32_score_mods(name: str) -> None:
    check_dtype(name, torch.float32)


@pytest.mark.parametrize("name", ["softcap", "bias", "bias of keys", "relative", "product"])
@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_16bit_score_mods(dtype: torch.dtype, name: str) -> None:
    check_dtype(name, dtype)


@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_products_of_16bit_tensors_are_rounded_as_torch_rounds_them(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """slopes[h] * (kv - q) is of the dtype of the slopes, which no option of the kernels has."""
    paths = watch(monkeypatch)
    tensors, slopes = inputs(dtype=dtype), torch.rand(HEADS).to(dtype)

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s + slopes[h] * (kv - q)

    found = call(tensors, score_mod, block_mask(causal), return_lse=True)
    assert paths.only == "blocks"
    assert_close(found, list(dense(*tensors, score_mod, causal)), dtype)
    call(tensors, lambda s, b, h, q, kv: s + slopes.float()[h] * (kv - q), block_mask(causal))
    assert paths.kernels == 1


def test_vectors_of_a_query_and_a_key() -> None:
    """A score_mod may compute with more than scalars."""
    tensors = inputs()
    of_query, of_key = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((LENGTH, 5), (5, LENGTH))
    )

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s + (of_query[q, :] * of_key[:, kv]).sum()

    leaves = [*tensors, of_query, of_key]
    expected = dense(*tensors, lambda s, *_: s + of_query @ of_key, causal)
    found = call(tensors, score_mod, block_mask(causal), return_lse=True)
    assert_close(with_gradients(found, leaves), with_gradients(expected, leaves))


def test_a_layer_of_a_query_and_a_key() -> None:
    """torch computes the product with in-place changes of shapes."""
    tensors, layer = inputs(), torch.nn.Linear(2, 1).double()

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s + layer(torch.stack([(q - kv).double().sin(), s])).squeeze()

    def expected_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s + layer(torch.stack([(q - kv).double().sin(), s], -1)).squeeze(-1)

    leaves = [*tensors, *layer.parameters()]
    found = with_gradients(call(tensors, score_mod, return_lse=True), leaves)
    assert_close(found, with_gradients(dense(*tensors, expected_mod), leaves))


def test_integers_among_indices() -> None:
    tensors = inputs()
    table = torch.randn(2, LENGTH, HEADS, dtype=torch.float64, requires_grad=True)
    found = call(tensors, lambda s, b, h, q, kv: s * table[1, kv, h], return_lse=True)
    expected = dense(*tensors, lambda s, b, h, q, kv: s * table[1, kv, h])
    leaves = [*tensors, table]
    assert_close(with_gradients(found, leaves), with_gradients(expected, leaves))


def test_gradients_of_what_captured_tensors_are_computed_from() -> None:
    tensors = inputs()
    weight = torch.randn(HEADS, 3, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(3, 2 * LENGTH, dtype=torch.float64)
    table = weight.square() @ factor

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s + table[h, q - kv + LENGTH].sin()

    leaves = [*tensors, weight]
    found = with_gradients(call(tensors, score_mod, return_lse=True), leaves)
    table = weight.square() @ factor
    assert_close(found, with_gradients(dense(*tensors, score_mod), leaves))


def test_a_name_bound_anew_before_the_backward() -> None:
    """The backward is that of the function that the forward called."""
    tensors = inputs()
    table = torch.randn(2 * LENGTH, dtype=torch.float64)

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s * table[q - kv + LENGTH]

    expected = with_gradients(dense(*tensors, score_mod), tensors)
    found = call(tensors, score_mod, return_lse=True)
    table = torch.zeros(1)
    assert_close(with_gradients(found, tensors), expected)


def test_a_captured_tensor_changed_before_the_backward_is_refused() -> None:
    tensors = inputs()
    table = torch.randn(2 * LENGTH, dtype=torch.float64)
    out = call(tensors, lambda s, b, h, q, kv: s * table[q - kv + LENGTH])
    table.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_rows_that_a_score_mod_hides_are_zeros() -> None:
    tensors = inputs()

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return torch.where(q % 5 == 3, -torch.inf, s.sin())

    out, lse = found = call(tensors, score_mod, return_lse=True)
    assert not out[:, :, 3::5].any() and (lse[:, :, 3::5] == -torch.inf).all()
    expected = dense(*tensors, score_mod)
    assert_close(with_gradients(found, tensors), with_gradients(expected, tensors))
