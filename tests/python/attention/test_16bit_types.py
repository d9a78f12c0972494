"""bfloat16 and float16: stored in 16 bits, computed in float32, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.checks import assert_rounded, check, run
from support.measuring import threads
from support.problems import DTYPES_16BIT, Spec, dtype_name, make_problem, single_variants
from support.tolerances import CLOSE

pytestmark = pytest.mark.tiles

every_16bit_dtype = pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)


@every_16bit_dtype
@pytest.mark.parametrize("spec", single_variants().values(), ids=single_variants().keys())
def test_every_option(dtype: torch.dtype, spec: Spec) -> None:
    check(make_problem(spec, dtype))


@every_16bit_dtype
def test_every_two_options(pairwise_spec: Spec, dtype: torch.dtype) -> None:
    check(make_problem(pairwise_spec, dtype))


@every_16bit_dtype
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("keys", [1, 2, 7, 16, 17, 40, 64, 130, 500])
@pytest.mark.parametrize("queries", [1, 3, 8, 9, 48, 65, 257])
def test_lengths(queries: int, keys: int, causal: bool, dtype: torch.dtype) -> None:
    widths = {"head_dim": 1 + (5 * queries + keys) % 70, "value_dim": 1 + (queries + 7 * keys) % 70}
    check(make_problem(Spec(queries=queries, keys=keys, causal=causal, **widths), dtype))


@every_16bit_dtype
@pytest.mark.parametrize("width", [1, 3, 8, 15, 16, 17, 31, 33, 64, 65, 128, 257])
def test_widths(width: int, dtype: torch.dtype) -> None:
    for value_dim in (1, 5, width):
        check(
            make_problem(
                Spec(1, 2, queries=33, keys=65, head_dim=width, value_dim=value_dim), dtype
            )
        )


@every_16bit_dtype
@pytest.mark.parametrize(
    "options", [{}, {"window": (700, 100)}, {"mask": "LS"}, {"sinks": "H"}], ids=str
)
def test_several_tiles_and_blocks(options: dict[str, Any], dtype: torch.dtype) -> None:
    check(make_problem(Spec(1, 2, queries=700, keys=1100, causal=True, **options), dtype))


@every_16bit_dtype
@pytest.mark.parametrize("queries", [1, 2, 5, 8])
@pytest.mark.parametrize("keys", [2048, 5000])
def test_decoding(queries: int, keys: int, dtype: torch.dtype) -> None:
    spec = Spec(2, 4, key_heads=2, value_heads=1, queries=queries, keys=keys, causal=True)
    for options in ({}, {"bias": "B11S", "sinks": "H"}, {"window": (3000, -1), "alibi": "H"}):
        check(make_problem(replace(spec, **options), dtype))


def all_values(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@every_16bit_dtype
def test_every_16_bit_value_round_trips(dtype: torch.dtype) -> None:
    """One key has weight 1. bfloat16 denormals are float32 denormals, which may be flushed."""
    values = all_values(dtype)
    if dtype == torch.bfloat16:
        flushed = values.float().abs() < torch.finfo(torch.float32).tiny
        values = values.masked_fill(flushed, 0.0)
    value = values.view(64, 1, 1, 1024)
    for queries in (1, 20):  # through the decode kernel and the general one
        query = torch.zeros(64, 1, queries, 4, dtype=dtype)
        out = flash_attention.attention(query, query[:, :, :1], value)
        expected = value.expand_as(out)
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@every_16bit_dtype
def test_results_are_rounded_to_the_nearest_even(dtype: torch.dtype) -> None:
    """Two keys with weight one half each: their mean is exact in float32."""
    generator = torch.Generator().manual_seed(0)
    values = all_values(dtype)
    values = values[values.float().abs() < 1e4]
    values = values[(values.float().abs() > 2.0**-100) | (values == 0)]
    pair = values[torch.randint(len(values), (1, 1, 2, 40_000), generator=generator)]
    out = flash_attention.attention(
        torch.zeros(1, 1, 1, 4, dtype=dtype), torch.zeros(1, 1, 2, 4, dtype=dtype), pair
    )
    expected = (pair[:, :, :1].float() * 0.5 + pair[:, :, 1:].float() * 0.5).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@every_16bit_dtype
def test_overflowing_result_is_infinite(dtype: torch.dtype) -> None:
    value = torch.full((1, 1, 1, 40), torch.finfo(dtype).max, dtype=dtype)
    query = torch.zeros(1, 1, 9, 4, dtype=dtype)
    torch.manual_seed(0)
    out = flash_attention.attention(query, query[:, :, :1], value, dropout=0.5)
    assert set(out.unique().tolist()) == {0.0, math.inf}


@every_16bit_dtype
def test_nan_value_affects_only_unmasked_rows(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(1, 2, queries=20, keys=33), dtype)
    inputs = problem.inputs
    inputs["value"][:, :, 5] = math.nan
    mask = torch.ones(20, 33, dtype=torch.bool)
    mask[3:, 5] = False
    out = flash_attention.attention(**inputs, bias=mask)
    assert out[:, :, :3].isnan().all() and not out[:, :, 3:].isnan().any()


@every_16bit_dtype
@pytest.mark.parametrize("shape", ["LS", "L1"])  # one element per key, and one for all keys
@pytest.mark.parametrize("keys", [40, 90, 2500])
@pytest.mark.parametrize("queries", [2, 20])
def test_row_masked_by_the_bias_is_fully_masked(
    queries: int, keys: int, shape: str, dtype: torch.dtype
) -> None:
    """A row with unmasked keys whose scores are all -inf would give NaN."""
    problem = make_problem(Spec(1, 2, queries=queries, keys=keys, bias=shape), dtype)
    problem.inputs["bias"][1] = -math.inf
    out, lse = flash_attention.attention_with_lse(**problem.inputs)
    assert not out[:, :, 1].any() and (lse[:, :, 1] == -math.inf).all()
    check(problem)


@every_16bit_dtype
@pytest.mark.parametrize("shape", ["BHLS", "S"])
def test_float32_bias_has_a_float32_gradient(shape: str, dtype: torch.dtype) -> None:
    problem = make_problem(Spec(bias=shape, alibi="H", sinks="BH"), dtype)
    wide = ("bias", "alibi_slopes", "sinks")
    leaves = {n: t.detach().float() if n in wide else t.detach() for n, t in problem.inputs.items()}
    single = {n: t.float().requires_grad_() for n, t in leaves.items()}
    leaves = {n: t.requires_grad_() for n, t in leaves.items()}
    out = flash_attention.attention(**leaves)
    assert out.dtype == dtype
    out.backward(problem.grad_out)
    flash_attention.attention(**single).backward(problem.grad_out.float())
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == leaf.dtype
        expected = single[name].grad
        if name in wide:
            tolerance = CLOSE[torch.float32]
            torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=tolerance)
        else:
            assert_rounded(leaf.grad, expected)


@every_16bit_dtype
def test_float32_bias_with_split_keys(dtype: torch.dtype) -> None:
    """Each split of each batch element must start at the same key in the bias."""
    inputs = make_problem(Spec(queries=2, keys=2500), dtype).inputs
    bias = torch.randn(2, 1, 1, 2500)
    out = flash_attention.attention(**inputs, bias=bias)
    single = {n: t.float() for n, t in inputs.items()}
    assert_rounded(out, flash_attention.attention(**single, bias=bias))


@every_16bit_dtype
def test_bitwise_equal_for_any_thread_count(dtype: torch.dtype) -> None:
    for spec in (
        Spec(2, 4, queries=150, keys=700, head_dim=16, bias="1H1S", causal=True, dropout=0.2),
        Spec(1, 1, queries=1300, keys=1300, head_dim=8, window=(90, 20)),
        Spec(1, 2, queries=3, keys=5000, head_dim=16),
    ):
        problem = make_problem(spec, dtype)
        with threads(1):
            expected = run(problem).tensors()
        for count in (2, 3, 8):
            with threads(count):
                for name, actual in run(problem).tensors().items():
                    assert torch.equal(actual, expected[name]), (name, count)


@every_16bit_dtype
def test_second_derivatives_and_forward_mode(dtype: torch.dtype) -> None:
    """They match those of float32, rounded."""
    problem = make_problem(Spec(1, 2, queries=6, keys=9, bias="LS"), dtype)
    names = ("query", "key", "value", "bias")

    generator = torch.Generator().manual_seed(1)
    tangents = [torch.randn(problem.inputs[n].shape, generator=generator) for n in names]

    def second(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Derivatives of a linear function of the gradients, which adds no rounding of its own."""
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = flash_attention.attention(*leaves[:3], bias=leaves[3])
        grads = torch.autograd.grad(out, leaves, problem.grad_out.to(out.dtype), create_graph=True)
        along = [t.to(dtype).to(out.dtype) for t in tangents]  # the same values in both dtypes
        return torch.autograd.grad(grads, leaves, along)

    inputs_16bit = tuple(problem.inputs[n] for n in names)
    inputs_float32 = tuple(t.float() for t in inputs_16bit)
    for actual, expected in zip(second(inputs_16bit), second(inputs_float32), strict=True):
        assert_rounded(actual, expected)

    def call(*x: Tensor) -> Tensor:
        return flash_attention.attention(*x[:3], bias=x[3])

    _, actual = torch.func.jvp(call, inputs_16bit, inputs_16bit)
    _, expected = torch.func.jvp(call, inputs_float32, inputs_float32)
    assert_rounded(actual, expected)
    mapped = torch.func.vmap(torch.func.grad(lambda *x: call(*x).float().sum()))(
        *(torch.stack([t, 2 * t]) for t in inputs_16bit)
    )
    alone = torch.func.grad(lambda *x: call(*x).float().sum())(*inputs_16bit)
    assert torch.equal(mapped[0], alone)


@every_16bit_dtype
def test_bias_gradient_under_vmap_is_rounded_once(dtype: torch.dtype) -> None:
    """A sum over the batch whose second half nearly cancels the first."""
    problem = make_problem(Spec(8, 2, queries=6, keys=9, bias="LS"), dtype)
    query, key, value, bias = problem.inputs.values()
    weight = torch.cat([problem.grad_out[:4], -problem.grad_out[:4]])
    query[4:], key[4:], value[4:] = query[:4] * 1.01, key[:4], value[:4]

    def gradient(of: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        k, v = key.to(of), value.to(of)

        def loss(q: Tensor, b: Tensor) -> Tensor:
            return (flash_attention.attention(q, k, v, bias=b).float() * weight.float()).sum()

        return torch.func.grad(loss, argnums=1)

    queries = torch.stack([query, query.flip(2), 2 * query])
    found = torch.vmap(gradient(dtype), in_dims=(0, None))(queries, bias)
    for one, own in zip(found, queries, strict=True):
        assert_rounded(one, gradient(torch.float32)(own.float(), bias.float()))


@every_16bit_dtype
def test_packed_sequences_and_a_cache(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    cuts = torch.tensor([0, 5, 5, 14])
    query, key, value, grad = random(14, 4, 8), random(14, 2, 8), random(14, 2, 6), random(14, 4, 6)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out = flash_attention.varlen_attention(*leaves, cuts, cuts, causal=True)
    grads = torch.autograd.grad(out, leaves, grad)
    assert out.dtype == dtype and all(g.dtype == dtype for g in grads)
    for begin, end in ((0, 5), (5, 14)):
        part = [t.detach()[begin:end].transpose(0, 1)[None].requires_grad_() for t in leaves]
        one = flash_attention.attention(*part, causal=True)
        expected = torch.autograd.grad(one, part, grad[begin:end].transpose(0, 1)[None])
        assert torch.equal(out[begin:end], one[0].transpose(0, 1))
        for actual, wanted in zip(grads, expected, strict=True):
            assert torch.equal(actual[begin:end], wanted[0].transpose(0, 1))

    cache = flash_attention.KeyValueCache(1, 2, 14, 8, value_dim=6, dtype=dtype)
    rows = [t.detach().transpose(0, 1)[None] for t in (query, key, value)]
    cache.append(rows[1], rows[2])
    actual = cache.attention(rows[0][:, :, -3:])
    expected = flash_attention.attention(rows[0][:, :, -3:], rows[1], rows[2], causal=True)
    assert torch.equal(actual, expected)


@pytest.mark.once
@every_16bit_dtype
def test_compile_and_opcheck(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(bias="1H1S", sinks="H"), dtype)
    leaves = problem.leaves()
    torch.library.opcheck(
        torch.ops.flash.attention.default, tuple(leaves[n] for n in ("query", "key", "value"))
    )
    compiled = torch.compile(flash_attention.attention, fullgraph=True, dynamic=True)
    out = compiled(**leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), problem.grad_out)
    expected = flash_attention.attention(**leaves)
    wanted = torch.autograd.grad(expected, list(leaves.values()), problem.grad_out)
    for one, other in zip((out, *grads), (expected, *wanted), strict=True):
        assert torch.equal(one, other)
