"""flex_attention against torch's own, its derivatives, its memory, and its place in torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import flash_attention
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from support.flex_reference import (
    BATCH,
    HEADS,
    LENGTH,
    WIDTH,
    Mod,
    assert_close,
    block_mask,
    call,
    dense,
    inputs,
    watch,
    with_gradients,
)
from support.measuring import peak_beyond_result
from support.problems import DTYPES_16BIT, dtype_name

# The kernels' instruction sets are tested with the operator.
pytestmark = pytest.mark.once


def causal(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return q >= kv


def dilated(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return (q - kv) % 3 == 0


def sine(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return s.sin() + 0.1 * (h + 1) * (q - kv)


def test_the_arguments_are_torchs() -> None:
    ours, theirs = (
        [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]
        for function in (flash_attention.flex_attention, torch_flex_attention)
    )
    assert ours == theirs


@pytest.mark.parametrize("mask_mod", [causal, dilated], ids=["kernels", "blocks"])
@pytest.mark.parametrize("score_mod", [None, sine], ids=["plain", "sine"])
def test_torchs_own_function(
    score_mod: Mod | None, mask_mod: Mod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward, which is all that it has on the CPU."""
    tensors = [x.detach() for x in inputs(dtype=torch.float32)]
    mask = block_mask(mask_mod)
    # Without torch.compile, it evaluates the definition, and warns that this is slow.
    monkeypatch.setattr(
        torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True
    )
    arguments: Any = (score_mod, mask)
    expected, aux = torch_flex_attention(
        *tensors, *arguments, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    out, own_aux = call(tensors, *arguments, return_aux=AuxRequest(lse=True))
    assert_close([out, own_aux.lse], [expected, aux.lse], torch.float32)


def test_auxiliary_outputs() -> None:
    tensors = inputs()
    out, lse = call(tensors, sine, return_lse=True)
    other, aux = call(tensors, sine, return_aux=AuxRequest(lse=True), kernel_options={"BLOCK_M": 9})
    assert torch.equal(other, out) and torch.equal(aux.lse, lse) and aux.max_scores is None
    for score_mod in (sine, None):
        _, aux = call(tensors, score_mod, return_aux=AuxRequest())
        assert aux.lse is None
    with pytest.raises(NotImplementedError, match="max_scores=True"):
        call(tensors, return_aux=AuxRequest(max_scores=True))
    with pytest.raises(ValueError, match="return_lse or return_aux, got both"):
        call(tensors, return_lse=True, return_aux=AuxRequest(lse=True))


def small() -> list[Tensor]:
    return [
        torch.randn(1, heads, 5, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1)
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_first_and_second_derivatives(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of out and lse by query, key, value and captured tensors, which are read in every way."""
    paths = watch(monkeypatch)
    mask = None
    if masked:  # the second query attends nothing, and the heads attend different blocks
        mask = create_block_mask(
            lambda b, h, q, kv: ((q + kv) % 3 != 0) & (q != 1) & ((h == 0) | (kv < 3)),
            None,
            2,
            5,
            5,
            device="cpu",
            BLOCK_SIZE=3,
        )

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, table, factor, vectors = leaves

        def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            same = (vectors[q] * vectors[kv]).sum()
            return factor * (s + table[q - kv + 4]).tanh() + table[h] * same

        out, lse = call([query, key, value], score_mod, mask, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    leaves = [*small()]
    leaves += [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((9,), (), (5, 2))
    ]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    assert paths.only == "blocks"


def test_second_derivatives_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, mask = watch(monkeypatch), create_block_mask(causal, None, None, 5, 5, device="cpu")
    slopes = torch.rand(2, dtype=torch.float64, requires_grad=True)

    def function(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        return call([query, key, value], lambda s, b, h, q, kv: s + slopes[h] * (kv - q), mask)

    assert torch.autograd.gradgradcheck(function, [*small(), slopes], fast_mode=True)
    assert paths.only == "kernels"


@pytest.mark.parametrize("score_mod", [None, sine], ids=["documents", "third"])
def test_derivatives_that_are_not_there(score_mod: Mod | None) -> None:
    tensors = small()
    documents = torch.tensor([0, 0, 1, 1, 1])
    mask = create_block_mask(
        lambda b, h, q, kv: documents[q] == documents[kv], None, None, 5, 5, device="cpu"
    )
    out = call(tensors, score_mod, mask)
    (first,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    if score_mod is None:
        with pytest.raises(NotImplementedError, match="expected a first derivative"):
            first.sum().backward()
    else:
        (second,) = torch.autograd.grad(first.square().sum(), tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            second.sum().backward()


def test_transforms_of_functions() -> None:
    query, key, value = (x.detach() for x in small())
    several = torch.stack([query, -query])
    each = torch.vmap(lambda x: call([x, key, value]))(several)
    assert_close([each[1]], [call([-query, key, value])])
    for transform, leaf in ((torch.vmap, several), (torch.func.jacrev, query)):
        with pytest.raises(NotImplementedError, match="outside of torch.func and torch.vmap"):
            transform(lambda x: call([x, key, value], sine))(leaf)


@pytest.mark.parametrize("score_mod", [None, sine], ids=["kernels", "blocks"])
def test_one_key_and_value_for_all_batches(score_mod: Mod | None) -> None:
    query, key, value = inputs()
    shared = [x.detach()[:1].requires_grad_() for x in (key, value)]
    tensors = [query, *shared]
    found = call(tensors, score_mod, return_lse=True)
    expanded = [query, *(x.expand(BATCH, -1, -1, -1) for x in shared)]
    expected = dense(*expanded, score_mod)
    assert_close(with_gradients(found, tensors), with_gradients(expected, tensors))


@pytest.mark.parametrize("score_mod", [None, sine], ids=["kernels", "blocks"])
def test_strided_tensors(score_mod: Mod | None) -> None:
    tensors = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in inputs()]
    tensors = [x.flip(3).requires_grad_() for x in tensors]
    found = call(tensors, score_mod, return_lse=True)
    expected = dense(*tensors, score_mod)
    assert_close(with_gradients(found, tensors), with_gradients(expected, tensors))


def test_the_result_has_the_layout_of_the_query() -> None:
    """Of one projection for query, key and value, as torch's own function has it."""
    parts = torch.randn(2, LENGTH, 3 * HEADS * WIDTH).chunk(3, -1)
    tensors = [x.view(2, LENGTH, HEADS, WIDTH).transpose(1, 2) for x in parts]
    out = call(tensors, sine)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out, call([x.contiguous() for x in tensors], sine))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 0, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0)], ids=str)
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    batch, heads, queries, keys = shape
    query = torch.randn(batch, heads, queries, 3, requires_grad=True)
    key, value = (torch.randn(batch, heads, keys, width) for width in (3, 4))
    out, lse = flash_attention.flex_attention(query, key, value, sine, return_lse=True)
    assert out.shape == (batch, heads, queries, 4) and lse.shape == (batch, heads, queries)
    assert not out.any() and (lse == -torch.inf).all()
    out.sum().backward()
    assert query.grad is not None and not query.grad.any()


@pytest.mark.parametrize("score_mod", [None, sine], ids=["kernels", "blocks"])
@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_autocast(dtype: torch.dtype, score_mod: Mod | None) -> None:
    tensors = [x.detach() for x in inputs(dtype=torch.float32)]
    mask = block_mask(causal)
    expected = call([x.to(dtype) for x in tensors], score_mod, mask, return_lse=True)
    with torch.autocast("cpu", dtype=dtype):
        found = call(tensors, score_mod, mask, return_lse=True)
    assert found[0].dtype == dtype
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_compiled_code_calls_it_outside_of_its_graphs() -> None:
    mask, tensors = block_mask(causal), inputs()

    def function(*tensors: Tensor) -> Tensor:
        return call([x * 2 for x in tensors], sine, mask).sin()

    compiled = torch.compile(function, backend="aot_eager")
    expected = with_gradients([function(*tensors)], tensors)
    assert_close(with_gradients([compiled(*tensors)], tensors), expected)
    torch.compiler.reset()


def test_checkpoints_recompute_it() -> None:
    """Recording a score_mod saves no tensors that a checkpoint would count."""
    tensors, table = inputs(), torch.randn(2 * LENGTH, dtype=torch.float64, requires_grad=True)

    def function(*tensors: Tensor) -> Tensor:
        return call(list(tensors), lambda s, b, h, q, kv: s.tanh() * table.exp()[q - kv + LENGTH])

    out = torch.utils.checkpoint.checkpoint(function, *tensors, use_reentrant=False)
    leaves = [*tensors, table]
    assert_close(with_gradients([out], leaves), with_gradients([function(*tensors)], leaves))


class Layer(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return call(list(tensors))


def test_export_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="outside of torch.export, got one inside"):
        torch.export.export(Layer(), tuple(inputs()), strict=False)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_memory_does_not_grow_with_the_product_of_the_lengths(backward: bool) -> None:
    """Of scores computed by blocks, with a table that has a gradient."""
    length = 2048
    tensors = [torch.randn(1, 2, length, 8, requires_grad=backward) for _ in range(3)]
    table = torch.randn(2 * length, requires_grad=backward)

    def score_mod(s: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return s * table[q - kv + length]

    def run() -> Any:
        out = flash_attention.flex_attention(*tensors, score_mod)
        return torch.autograd.grad(out.sum(), [*tensors, table]) if backward else out

    peak, all_scores = peak_beyond_result(run), 2 * length * length * 4
    # Blocks of 2**18 scores, some of int64 indices: 2 MiB each, up to ten at a time.
    assert peak < 20 * 2**20 < all_scores * 0.7


def test_importing_the_package_does_not_import_torchs_module() -> None:
    code = (
        "import sys, flash_attention;assert 'torch.nn.attention.flex_attention' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'flex_attentions'"):
        flash_attention.flex_attentions  # noqa: B018


def test_heads_are_those_of_the_query() -> None:
    tensors = inputs()
    out = call(tensors, lambda s, b, h, q, kv: torch.where(kv == h, s + 50.0, s))
    values = tensors[2].repeat_interleave(2, 1)
    chosen = torch.stack([values[:, h, h] for h in range(HEADS)], 1)
    # exp(-40) of the weight, after scores of up to 10, is for the other keys.
    torch.testing.assert_close(out, chosen.unsqueeze(2).expand(-1, -1, LENGTH, -1))
