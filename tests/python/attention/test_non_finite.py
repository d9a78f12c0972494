"""NaN and Inf in any input: where they appear in results and gradients, and the time they take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import flash_attention
import pytest
import torch
from torch import Tensor

from support.checks import run
from support.measuring import threads
from support.problems import DTYPES, DTYPES_16BIT, Problem, Spec, dtype_name, make_problem
from support.tolerances import CLOSE

NAN, INF = math.nan, math.inf
BASE = Spec(1, 2, queries=29, keys=37, head_dim=9, value_dim=11)
MASKS = {
    "causal": replace(BASE, causal=True),
    "window": replace(BASE, window=(6, 3)),
    "boolean": replace(BASE, mask="LS"),
    "minus-infinity": replace(BASE, bias="1HLS", excluded_by_bias=True),
    "decode": replace(BASE, queries=3, keys=90, mask="LS"),
    "padding": replace(BASE, mask="B11S", causal=True),
}


def allowed(problem: Problem) -> Tensor:
    """bool [L, S] or [B, H, L, S]: True for unmasked pairs."""
    queries, keys = problem.inputs["query"].size(-2), problem.inputs["key"].size(-2)
    distance = torch.arange(keys) - (torch.arange(queries) + keys - queries).unsqueeze(-1)
    result = torch.ones(queries, keys, dtype=torch.bool)
    if problem.options["causal"]:
        result &= distance <= 0
    if problem.options["window"] is not None:
        left, right = problem.options["window"]
        result &= (distance >= -left) & (distance <= right)
    bias = problem.inputs.get("bias")
    if bias is not None:
        result = result & (bias if bias.dtype == torch.bool else bias != -INF)
    return result


def masked_sum(factors: Tensor, rows: Tensor, pairs: Tensor, dim: int) -> Tensor:
    """Sum of factors[..., l, s] * rows over l or s, without masked pairs, which may be 0 * NaN."""
    terms = factors.unsqueeze(-1) * rows
    return terms.masked_fill(~pairs.unsqueeze(-1), 0.0).sum(dim)


def definition(problem: Problem, grad_out: Tensor) -> dict[str, Tensor]:
    """out and the gradients of query, key and value in float64, from unmasked pairs only."""
    inputs = {n: t.double() if t.is_floating_point() else t for n, t in problem.inputs.items()}
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    grad_out = grad_out.double()
    scale = 1 / math.sqrt(query.size(-1))
    scores = query @ key.mT * scale
    bias = inputs.get("bias")
    if bias is not None and bias.dtype != torch.bool:
        scores = scores + bias
    pairs = allowed(problem).expand_as(scores)
    some = pairs.any(-1, keepdim=True)
    weights = scores.masked_fill(~pairs, -INF).masked_fill(~some, 0.0).softmax(-1)
    weights = weights.masked_fill(~pairs, 0.0)
    out = masked_sum(weights, value.unsqueeze(-3), pairs, -2)
    delta = (grad_out * out).sum(-1, keepdim=True)
    grad = (weights * (grad_out @ value.mT - delta)).masked_fill(~pairs, 0.0) * scale
    return {
        "out": out,
        "dq": masked_sum(grad, key.unsqueeze(-3), pairs, -2),
        "dk": masked_sum(grad, query.unsqueeze(-2), pairs, -3),
        "dv": masked_sum(weights, grad_out.unsqueeze(-2), pairs, -3),
    }


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("non_finite", [NAN, INF, -INF], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_masked_pairs_contribute_nothing(
    dtype: torch.dtype, name: str, non_finite: float, mask: str
) -> None:
    """Non-finite exactly where the definition over unmasked pairs is, and correct elsewhere."""
    problem = make_problem(MASKS[mask], dtype)
    tensor = problem.grad_out if name == "grad_out" else problem.inputs[name]
    tensor[0, 1, tensor.size(2) // 2, 2] = non_finite
    tensor[0, 0, -1, 0] = non_finite
    problem.grad_lse = torch.zeros_like(problem.grad_lse)
    expected = definition(problem, problem.grad_out)
    actual = run(problem).tensors()
    for result, truth in expected.items():
        found = actual[result].double()
        assert torch.equal(found.isfinite(), truth.isfinite()), result
        fine = truth.isfinite()
        torch.testing.assert_close(found[fine], truth[fine], rtol=0, atol=CLOSE[dtype], msg=result)


@pytest.mark.parametrize("keys", [0, 1, 40])
@pytest.mark.parametrize("non_finite", [NAN, INF], ids=["nan", "inf"])
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_fully_masked_rows_get_no_gradient(
    dtype: torch.dtype, non_finite: float, keys: int
) -> None:
    """The row is 0 whatever the inputs, so its output gradient reaches not even its sink."""
    spec = replace(BASE, batch=2, queries=49, keys=keys, causal=True, sinks="BH", dropout=0.1)
    problem = make_problem(spec, dtype)
    problem.grad_out[1, 0, 2] = 0
    expected = run(problem)
    problem.grad_out[1, 0, 2] = non_finite
    found = run(problem)
    for name, gradient in expected.grads.items():
        assert found.grads[name].isfinite().all(), name
        assert torch.equal(found.grads[name], gradient), name


@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_finite_value_flags_are_per_batch_element(dtype: torch.dtype) -> None:
    """One thread processes both batch elements in turn, and their head index is equal."""
    inputs = make_problem(Spec(2, 1, queries=20, keys=37, mask="LS"), dtype).inputs
    mask = inputs.pop("bias")
    mask[:, 5] = False
    inputs["value"][1, :, 5] = NAN
    with threads(1):
        together = flash_attention.attention(**inputs, bias=mask)
    alone = flash_attention.attention(**{n: t[1:] for n, t in inputs.items()}, bias=mask)
    assert alone.isfinite().all()
    assert torch.equal(together[1:], alone)


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call, the minimum of five."""
    times = []
    for _ in range(5):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


# A single NaN used to make a call tens of times slower, more so for longer sequences.
# bench/attention/non_finite.py requires a factor of at most 2; on a busy machine it may be higher.
MAX_SLOWDOWN = 6.0


@pytest.mark.parametrize("non_finite", ["query", "value", "everything"])
@pytest.mark.parametrize("mask", ["causal", "boolean"])
def test_non_finite_inputs_are_not_slow(mask: str, non_finite: str) -> None:
    length = 1024
    query, key, value = (torch.randn(1, 2, length, 32) for _ in range(3))
    options = {"causal": True} if mask == "causal" else {"bias": torch.rand(length, length) < 0.7}
    grad = torch.randn(1, 2, length, 32)

    def calls(*inputs: Tensor) -> tuple[float, float]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = flash_attention.attention(*leaves, **options)
        forward = cpu_seconds(lambda: flash_attention.attention(*inputs, **options))
        backward = cpu_seconds(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))
        return forward, backward

    clean = calls(query, key, value)
    query, key, value = query.clone(), key.clone(), value.clone()
    if non_finite == "query":
        query[..., -1, 3] = NAN
    elif non_finite == "value":
        value[..., length // 2, 3] = NAN
    else:
        for tensor in (query, key, value):
            tensor.fill_(NAN)
    for found, usual in zip(calls(query, key, value), clean, strict=True):
        assert found < MAX_SLOWDOWN * usual + 1e-3
