"""Results are bitwise equal for any number of threads and from run to run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import flash_attention
import pytest
import torch

from support.checks import run
from support.measuring import threads
from support.problems import DTYPES, VARIANTS, Problem, Spec, dtype_name, make_problem
from support.reference import Result
from support.tolerances import CLOSE

# Long enough that every thread gets work in forward and backward.
BASE = Spec(batch=2, heads=4, queries=150, keys=170, head_dim=16, value_dim=24)

OPTIONS = {"plain": BASE} | {
    name: replace(BASE, **changes)
    for group, variants in VARIANTS.items()
    if group != "lengths"
    for name, changes in variants.items()
}

# B * H = 1: only blocks of queries and keys can be distributed over threads.
LONG = {
    "one-long-sequence": Spec(1, 1, queries=1300, keys=1300, head_dim=8, value_dim=8),
    "one-long-causal": Spec(1, 1, queries=1300, keys=1300, head_dim=8, value_dim=8, causal=True),
    "few-queries": Spec(1, 1, queries=3, keys=5000, head_dim=16, value_dim=16),
    "few-keys": Spec(1, 1, queries=5000, keys=3, head_dim=16, value_dim=16),
    "key-bias": Spec(1, 1, queries=900, keys=1000, head_dim=8, value_dim=8, bias="S"),
    "row-bias": Spec(1, 1, queries=900, keys=1000, head_dim=8, value_dim=8, bias="L1"),
    "scalar-bias": Spec(1, 1, queries=900, keys=1000, head_dim=8, value_dim=8, bias=""),
    "dropout": Spec(1, 1, queries=900, keys=1000, head_dim=8, value_dim=8, dropout=0.3),
    "window": Spec(1, 1, queries=1300, keys=1300, head_dim=8, value_dim=8, window=(90, 20)),
    "alibi": Spec(1, 1, queries=900, keys=1000, head_dim=8, value_dim=8, alibi="H"),
    "sinks": Spec(1, 1, queries=900, keys=1000, head_dim=8, value_dim=8, sinks="H"),
}


def run_on(problem: Problem, count: int) -> Result:
    with threads(count):
        return run(problem)


def assert_same_bits(actual: Result, expected: Result, what: str) -> None:
    for name, tensor in expected.tensors().items():
        assert torch.equal(actual.tensors()[name], tensor), f"{name} differs {what}"


@pytest.mark.parametrize("spec", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bitwise_equal_for_any_thread_count_and_option(dtype: torch.dtype, spec: Spec) -> None:
    problem = make_problem(spec, dtype)
    expected = run_on(problem, 1)
    for count in (2, 3, 8):
        assert_same_bits(run_on(problem, count), expected, f"between 1 and {count} threads")


@pytest.mark.parametrize("spec", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bitwise_equal_for_any_thread_count_on_one_sequence(dtype: torch.dtype, spec: Spec) -> None:
    problem = make_problem(spec, dtype)
    expected = run_on(problem, 1)
    for count in range(2, 9):
        assert_same_bits(run_on(problem, count), expected, f"between 1 and {count} threads")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bitwise_equal_from_run_to_run(dtype: torch.dtype) -> None:
    problem = make_problem(replace(BASE, bias="1H1S", causal=True, dropout=0.2), dtype)
    expected = run(problem)
    for _ in range(250):
        assert_same_bits(run(problem), expected, "between two runs")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_batch_matches_single_elements(dtype: torch.dtype) -> None:
    """Outputs are bitwise equal; gradients differ by rounding, because the partition of the
    backward over many cores depends on the batch size."""
    problem = make_problem(replace(BASE, causal=True), dtype)
    together = run(problem)
    for b in range(BASE.batch):
        one = make_problem(replace(BASE, batch=1, causal=True), dtype)
        one.inputs = {name: t[b : b + 1] for name, t in problem.inputs.items()}
        one.grad_out, one.grad_lse = problem.grad_out[b : b + 1], problem.grad_lse[b : b + 1]
        alone = run(one)
        assert torch.equal(alone.out, together.out[b : b + 1])
        assert torch.equal(alone.lse, together.lse[b : b + 1])
        for name, grad in alone.grads.items():
            expected = together.grads[name][b : b + 1]
            torch.testing.assert_close(grad, expected, rtol=0, atol=CLOSE[dtype], msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bitwise_equal_for_any_memory_layout(dtype: torch.dtype) -> None:
    problem = make_problem(replace(BASE, layout="transposed", causal=True), dtype)
    expected = run(problem)
    problem.inputs = {name: t.contiguous() for name, t in problem.inputs.items()}
    assert_same_bits(run(problem), expected, "between layouts")


def test_concurrent_calls_from_several_threads() -> None:
    """Calls from several Python threads at once, as in a data loader or a server."""
    problem = make_problem(replace(BASE, causal=True), torch.float32)
    expected = run(problem).out

    def call(_: int) -> torch.Tensor:
        return flash_attention.attention(**problem.inputs, **problem.options)

    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(call, range(16)):
            assert torch.equal(out, expected)
