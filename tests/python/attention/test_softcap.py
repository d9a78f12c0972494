"""Edge cases of the softcap: huge, infinite and NaN scores, and huge and tiny caps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.checks import run
from support.problems import DTYPES, Spec, dtype_name, make_problem
from support.tolerances import CLOSE

BASE = Spec(1, 3, queries=40, keys=57)


@pytest.mark.parametrize("factor", [1e4, 1e9, 1e19])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_softcap_of_huge_scores_is_their_sign(dtype: torch.dtype, factor: float) -> None:
    problem = make_problem(replace(BASE, softcap=3.0), dtype)
    problem.inputs["query"] *= factor
    result = run(problem)
    scores = problem.inputs["query"].double() @ problem.inputs["key"].double().mT
    weights = torch.softmax(3.0 * scores.sign(), -1)
    clear = (scores.abs() / math.sqrt(8) > 3.0 * 20).all(-1)  # there, tanh is 1
    assert clear.sum() >= 3
    expected = (weights @ problem.inputs["value"].double()).to(dtype)
    torch.testing.assert_close(result.out[clear], expected[clear], rtol=0, atol=CLOSE[dtype])
    assert all(t.isfinite().all() for t in result.tensors().values())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_softcap_of_infinite_scores(dtype: torch.dtype, sign: int) -> None:
    problem = make_problem(replace(BASE, softcap=2.0), dtype)
    problem.inputs["query"][0, 0, 5] = 0
    problem.inputs["query"][0, 0, 5, 2] = sign * math.inf
    result = run(problem)
    signs = sign * problem.inputs["key"][0, 0, :, 2].sign()
    expected = torch.softmax(2.0 * signs, -1) @ problem.inputs["value"][0, 0]
    torch.testing.assert_close(result.out[0, 0, 5], expected, rtol=0, atol=CLOSE[dtype])
    assert (result.grads["dq"][0, 0, 5] == 0).all()


@pytest.mark.parametrize("cap", [1e6, 1e30, 1e38, 1e39, 1e300])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_large_softcap_has_no_effect(dtype: torch.dtype, cap: float) -> None:
    """Including caps beyond the largest float32, whose inverse underflows, too."""
    expected = run(make_problem(BASE, dtype))
    actual = run(make_problem(replace(BASE, softcap=cap), dtype))
    # tanh(x) = x - x^3 / 3 + ...: the cubic term of a cap of 1e6 for scores up to 10.
    assert 10.0**3 / (3 * 1e6**2) < 1e-9
    for name, tensor in expected.tensors().items():
        tolerance = max(CLOSE[dtype], 1e-9 if cap == 1e6 else 0.0)
        torch.testing.assert_close(actual.tensors()[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("cap", [1e-30, 1e-39, 1e-320])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_tiny_softcap_makes_all_weights_equal(dtype: torch.dtype, cap: float) -> None:
    problem = make_problem(replace(BASE, softcap=cap), dtype)
    problem.inputs["key"][:, :, 7] = 0  # a score of 0, which must not become 0 times infinity
    result = run(problem)
    mean = problem.inputs["value"].mean(2, keepdim=True).expand_as(result.out)
    torch.testing.assert_close(result.out, mean, rtol=0, atol=CLOSE[dtype])
    assert all(t.isfinite().all() for t in result.tensors().values())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_softcap_keeps_nan_scores(dtype: torch.dtype) -> None:
    problem = make_problem(replace(BASE, softcap=2.0), dtype)
    clean = run(problem)
    problem.inputs["query"][0, 1, 4, 3] = math.nan
    dirty = run(problem)
    assert dirty.out[0, 1, 4].isnan().all() and dirty.grads["dq"][0, 1, 4].isnan().all()
    others = [row for row in range(40) if row != 4]
    assert torch.equal(dirty.out[0, 1, others], clean.out[0, 1, others])
    assert torch.equal(dirty.grads["dq"][0, 1, others], clean.grads["dq"][0, 1, others])
