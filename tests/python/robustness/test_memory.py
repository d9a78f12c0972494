"""Memory: attention_memory predicts measured use exactly, and nothing grows with L times S."""

from __future__ import annotations

import itertools
from typing import Any

import flash_attention
import pytest
import torch

from support.measuring import peak_beyond_result, threads
from support.problems import (
    DTYPES,
    DTYPES_16BIT,
    Problem,
    Spec,
    compute_dtype,
    dtype_name,
    make_problem,
)

SHAPES = [
    Spec(batch=1, heads=1, queries=1, keys=1, head_dim=1, value_dim=1),
    Spec(batch=1, heads=8, queries=128, keys=128, head_dim=64, value_dim=64),
    Spec(batch=2, heads=3, queries=33, keys=200, head_dim=24, value_dim=65),
    Spec(batch=1, heads=1, queries=1500, keys=700, head_dim=16, value_dim=8),
    Spec(batch=1, heads=1, queries=3, keys=3000, head_dim=8, value_dim=8),
]


def shape_id(spec: Spec) -> str:
    widths = f"D{spec.head_dim}x{spec.value_dim}"
    return f"{spec.batch}x{spec.heads}x{spec.queries}x{spec.keys}-{widths}"


def predicted(problem: Problem) -> flash_attention.MemoryUsage:
    spec = problem.spec
    return flash_attention.attention_memory(
        spec.batch,
        spec.heads,
        spec.queries,
        spec.keys,
        spec.head_dim,
        spec.value_dim,
        problem.dtype,
        problem.options["block_size"],
        problem.options["use_simd"],
        has_softcap=spec.softcap > 0,
    )


def measure_forward(problem: Problem) -> int:
    with torch.no_grad():
        return peak_beyond_result(
            lambda: flash_attention.attention(**problem.inputs, **problem.options)
        )


def measure_backward(problem: Problem) -> int:
    leaves = problem.leaves()
    out = flash_attention.attention(**leaves, **problem.options)
    inputs = [leaves[n] for n in problem.differentiable]
    return peak_beyond_result(
        lambda: torch.autograd.grad(out, inputs, problem.grad_out, retain_graph=True)
    )


@pytest.mark.parametrize("number_of_threads", [1, 2])
@pytest.mark.parametrize("spec", SHAPES, ids=shape_id)
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_prediction_is_exact(dtype: torch.dtype, spec: Spec, number_of_threads: int) -> None:
    problem = make_problem(spec, dtype)
    with threads(number_of_threads):
        usage = predicted(problem)
        assert (measure_forward(problem), measure_backward(problem)) == tuple(usage)


@pytest.mark.parametrize("block_size", [1, 32, 256, 10**9])
@pytest.mark.parametrize("use_simd", [True, False], ids=["simd", "no-simd"])
def test_prediction_is_exact_for_every_block_size(block_size: int, use_simd: bool) -> None:
    spec = Spec(1, 2, queries=100, keys=400, block_size=block_size, use_simd=use_simd)
    problem = make_problem(spec, torch.float32)
    usage = predicted(problem)
    assert (measure_forward(problem), measure_backward(problem)) == tuple(usage)


@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_causal_needs_no_extra_memory(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(1, 2, queries=300, keys=400, causal=True), dtype)
    usage = predicted(problem)
    assert (measure_forward(problem), measure_backward(problem)) == tuple(usage)


@pytest.mark.parametrize(
    "bias",
    [{"mask": "LS"}, {"mask": "B11S"}, {"bias": "LS", "bias_grad": False}],
    ids=["mask-LS", "mask-B11S", "bias-LS"],
)
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_bias_needs_one_extra_tile_per_thread(dtype: torch.dtype, bias: dict[str, object]) -> None:
    """The extra scratch is one block of keys by one tile of queries, independent of L and S."""
    extra = set()
    with threads(1):
        for queries, keys in ((300, 400), (1100, 900)):
            problem = make_problem(Spec(1, 2, queries=queries, keys=keys, **bias), dtype)
            usage = predicted(problem)
            extra.add(measure_forward(problem) - usage.forward)
            extra.add(measure_backward(problem) - usage.backward)
    assert max(extra) <= 256 * 64 * problem.inputs["query"].element_size()
    assert len(extra) <= 2  # one value for the forward and one for the backward


@pytest.mark.parametrize("block_size", [1, 64, 10**9])
@pytest.mark.parametrize(
    "option",
    [
        {"window": (30, 5)},
        {"window": (0, 0)},
        {"softcap": 3.0},
        {"window": (9, -1), "softcap": 3.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_prediction_is_exact_with_window_and_softcap(
    dtype: torch.dtype, option: dict[str, Any], block_size: int
) -> None:
    spec = Spec(1, 2, queries=300, keys=400, block_size=block_size, **option)
    problem = make_problem(spec, dtype)
    with threads(1):  # a window may occupy fewer threads, which attention_memory cannot know
        usage = predicted(problem)
        assert (measure_forward(problem), measure_backward(problem)) == tuple(usage)


@pytest.mark.parametrize("option", [{"alibi": "H"}, {"alibi": "BH"}, {"sinks": "H"}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_slopes_and_sinks_need_a_few_elements_per_row(
    dtype: torch.dtype, option: dict[str, Any]
) -> None:
    problem = make_problem(Spec(1, 2, queries=900, keys=700, **option), dtype)
    usage = predicted(problem)
    # The kernels read float32, so 16-bit slopes and sinks are copied.
    copied = 2 * 4 if dtype in DTYPES_16BIT else 0
    assert measure_forward(problem) - usage.forward == copied
    # Backward: the contribution of each row, intermediate products, and float64 sums.
    rows = 2 * 900 * torch.empty((), dtype=compute_dtype(dtype)).element_size()
    assert measure_backward(problem) - usage.backward <= 6 * rows + 1024


def test_dropout_needs_only_a_seed() -> None:
    problem = make_problem(Spec(1, 2, queries=300, keys=400, dropout=0.5), torch.float32)
    usage = predicted(problem)
    seed = torch.empty(1, dtype=torch.int64).nbytes
    assert measure_forward(problem) - usage.forward <= seed
    assert measure_backward(problem) == usage.backward


@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_memory_is_linear_in_queries_and_constant_in_keys(dtype: torch.dtype) -> None:
    """Doubling L doubles only the row statistics; doubling S changes nothing in the forward."""
    size = torch.empty((), dtype=compute_dtype(dtype)).element_size()
    for queries, keys in itertools.product((2048, 4096), repeat=2):
        usage = flash_attention.attention_memory(1, 8, queries, keys, 64, 64, dtype)
        taller = flash_attention.attention_memory(1, 8, 2 * queries, keys, 64, 64, dtype)
        longer = flash_attention.attention_memory(1, 8, queries, 2 * keys, 64, 64, dtype)
        assert taller.forward - usage.forward == 2 * 8 * queries * size
        assert longer.forward == usage.forward
        # Determinism may cost the backward a few elements per row.
        assert taller.backward - usage.backward <= 4 * 8 * queries * 64 * size
        assert longer.backward - usage.backward <= 4 * 8 * keys * 64 * size


def test_grouped_heads_are_not_expanded() -> None:
    """A 4 MB key head shared by 8 query heads: copies for each would take 28 MB more."""
    spec = Spec(1, 8, key_heads=1, value_heads=1, queries=8, keys=16384, head_dim=64, value_dim=64)
    problem = make_problem(spec, torch.float32)
    key_bytes = problem.inputs["key"].nbytes
    assert measure_forward(problem) < key_bytes
    assert measure_backward(problem) < 4 * key_bytes


@pytest.mark.parametrize("bias", ["S", "L1", "", "1H1S", "BHL1"])
def test_broadcast_bias_gradient_needs_no_score_matrix(bias: str) -> None:
    spec = Spec(1, 2, queries=1200, keys=1100, head_dim=8, value_dim=8, bias=bias)
    matrix = 2 * 1200 * 1100 * 4
    assert measure_backward(make_problem(spec, torch.float32)) < matrix / 4
