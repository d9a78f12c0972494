"""Fully masked rows, NaN and Inf, huge and tiny values, and zero sizes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import flash_attention
import pytest
import torch

from support.checks import check, run
from support.problems import DTYPES, Problem, Spec, dtype_name, make_problem
from support.reference import Result
from support.tolerances import CLOSE

BASE = Spec(1, 2, queries=20, keys=37)
NAN, INF = math.nan, math.inf


def assert_fully_masked(result: Result, rows: slice) -> None:
    assert (result.out[..., rows, :] == 0).all()
    assert (result.lse[..., rows] == -INF).all()
    assert (result.grads["dq"][..., rows, :] == 0).all()


# --- fully masked rows --------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 8, 64])
@pytest.mark.parametrize("kind", ["bool", "minus-infinity"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fully_masked_rows_give_zeros(dtype: torch.dtype, kind: str, block_size: int) -> None:
    problem = make_problem(replace(BASE, mask="LS", block_size=block_size), dtype)
    problem.inputs["bias"][5:8] = False
    if kind == "minus-infinity":
        bias = torch.zeros(20, 37, dtype=dtype)
        problem.inputs["bias"] = bias.masked_fill(~problem.inputs["bias"], -INF)
        problem.differentiable = (*problem.differentiable, "bias")
    check(problem)
    assert_fully_masked(run(problem), slice(5, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_everything_masked(dtype: torch.dtype) -> None:
    problem = make_problem(replace(BASE, mask="LS"), dtype)
    problem.inputs["bias"][:] = False
    result = run(problem)
    assert_fully_masked(result, slice(None))
    assert all((grad == 0).all() for grad in result.grads.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_causal_queries_before_the_first_key(dtype: torch.dtype) -> None:
    """Bottom-right alignment with L > S: the first L - S queries precede every key."""
    problem = make_problem(Spec(1, 2, queries=40, keys=9, causal=True), dtype)
    check(problem)
    assert_fully_masked(run(problem), slice(0, 31))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_keys_visible_only_in_the_last_block(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(1, 1, queries=10, keys=300, mask="LS", block_size=16), dtype)
    problem.inputs["bias"][:, :290] = False
    check(problem)


# --- NaN and Inf --------------------------------------------------------------------------------


@pytest.mark.parametrize("non_finite", [NAN, INF, -INF], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_values_propagate_as_in_the_definition(
    dtype: torch.dtype, name: str, non_finite: float
) -> None:
    """NaN exactly where softmax(q k^T + bias) v has it; everything else within tolerance."""
    problem = make_problem(replace(BASE, bias="1HLS"), dtype)
    problem.inputs[name][0, 1, 3, 2] = non_finite
    inputs = {n: t.double() for n, t in problem.inputs.items()}
    scores = inputs["query"] @ inputs["key"].mT / math.sqrt(8) + inputs["bias"]
    expected = torch.softmax(scores, -1) @ inputs["value"]
    out = flash_attention.attention(**problem.inputs)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=CLOSE[dtype], equal_nan=True)


@pytest.mark.parametrize("use_simd", [True, False], ids=["simd", "no-simd"])
@pytest.mark.parametrize("non_finite", [NAN, INF, -INF], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_values_stay_in_their_head_and_batch(
    dtype: torch.dtype, name: str, non_finite: float, use_simd: bool
) -> None:
    """Other heads and batch elements keep every bit, forward and backward."""
    problem = make_problem(replace(BASE, batch=2, use_simd=use_simd), dtype)
    clean = run(problem)
    problem.inputs[name][1, 0, 3, 2] = non_finite
    dirty = run(problem)
    for result_name, tensor in clean.tensors().items():
        actual = dirty.tensors()[result_name]
        assert torch.equal(actual[0], tensor[0]), result_name
        assert torch.equal(actual[1, 1], tensor[1, 1]), result_name
    if name == "query":
        others = [row for row in range(20) if row != 3]
        assert torch.equal(dirty.grads["dq"][1, 0, others], clean.grads["dq"][1, 0, others])
        assert dirty.out[1, 0, 3].isnan().all()


def masked_key_problems(dtype: torch.dtype) -> dict[str, tuple[Problem, slice]]:
    """Problems in which no query attends a slice of the keys, by each kind of mask."""
    length = {"queries": 37, "keys": 37}
    problems = {}
    mask = make_problem(replace(BASE, mask="LS", **length), dtype)
    mask.inputs["bias"][:, 30:34] = False
    problems["mask"] = (mask, slice(30, 34))
    padding = make_problem(replace(BASE, mask="B11S", **length), dtype)
    padding.inputs["bias"][:] = True
    padding.inputs["bias"][..., 30:] = False
    problems["padding"] = (padding, slice(30, 37))
    bias = make_problem(replace(BASE, bias="LS", **length), dtype)
    bias.inputs["bias"][:, 30:34] = -INF
    problems["minus-infinity"] = (bias, slice(30, 34))
    positions = make_problem(replace(BASE, causal=True, **length), dtype)
    positions.options["query_positions"] = torch.arange(37).clamp(max=29)
    problems["causal"] = (positions, slice(30, 37))
    return problems


@pytest.mark.parametrize("block_size", [1, 8, 64])
@pytest.mark.parametrize("non_finite", [NAN, INF], ids=["nan", "inf"])
@pytest.mark.parametrize("means", ["mask", "padding", "minus-infinity", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_masked_keys_have_no_effect(
    dtype: torch.dtype, means: str, non_finite: float, block_size: int
) -> None:
    """NaN and Inf in masked keys and values: same results, and zero gradients there."""
    problem, hidden = masked_key_problems(dtype)[means]
    problem.options["block_size"] = block_size
    clean = run(problem)
    problem.inputs["key"][:, :, hidden] = non_finite
    problem.inputs["value"][:, :, hidden] = non_finite
    dirty = run(problem)
    for name, tensor in clean.tensors().items():
        torch.testing.assert_close(
            dirty.tensors()[name], tensor, rtol=0, atol=CLOSE[dtype], msg=name
        )
    for name in ("dk", "dv"):
        assert (dirty.grads[name][:, :, hidden] == 0).all(), name


@pytest.mark.parametrize("queries", [1, 6, 37, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_nan_key_does_not_affect_earlier_causal_rows(dtype: torch.dtype, queries: int) -> None:
    """Causal: a NaN key and value at position t affects rows from t on, and no earlier one."""
    problem = make_problem(Spec(1, 1, queries=queries, keys=queries, causal=True), dtype)
    clean = run(problem)
    at = queries // 2
    problem.inputs["key"][0, 0, at] = NAN
    problem.inputs["value"][0, 0, at] = NAN
    dirty = run(problem)
    for one, other in ((dirty.out, clean.out), (dirty.grads["dq"], clean.grads["dq"])):
        torch.testing.assert_close(one[:, :, :at], other[:, :, :at], rtol=0, atol=CLOSE[dtype])
        assert one[:, :, at:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_nan_value_affects_only_rows_that_attend_it(dtype: torch.dtype) -> None:
    """Half of the rows attend the NaN and become NaN; the other half does not change."""
    problem = make_problem(replace(BASE, mask="LS"), dtype)
    problem.inputs["bias"][:, 11] = torch.arange(20) % 2 == 0
    clean = run(problem)
    problem.inputs["value"][0, :, 11, 4] = NAN
    dirty = run(problem)
    odd = slice(1, None, 2)
    for one, other in ((dirty.out, clean.out), (dirty.grads["dq"], clean.grads["dq"])):
        torch.testing.assert_close(one[:, :, odd], other[:, :, odd], rtol=0, atol=CLOSE[dtype])
    assert dirty.out[:, :, ::2, 4].isnan().all()
    assert dirty.grads["dq"][0, :, ::2].isnan().all()


@pytest.mark.once
def test_standard_attention_multiplies_what_is_masked() -> None:
    """0 * NaN: only `attention` keeps a NaN out of rows that do not attend it."""
    query, key, value, grad = (torch.randn(1, 1, 4, 8) for _ in range(4))
    value[0, 0, 3], grad[0, 0, 0] = NAN, NAN
    value.requires_grad_()
    rows = []
    for function in (flash_attention.attention, flash_attention.standard_attention):
        out = function(query, key, value, causal=True)
        (d_value,) = torch.autograd.grad(out, value, grad)
        rows.append([x[0, 0].isnan().any(-1).tolist() for x in (out, d_value)])
    assert rows[0] == [[False, False, False, True], [True, False, False, False]]
    assert rows[1] == [[True] * 4, [True] * 4]


# --- huge and tiny values -----------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e15])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_huge_logits_select_the_largest(dtype: torch.dtype, factor: float) -> None:
    """One weight is 1 and the rest 0, without overflow or NaN, forward and backward."""
    problem = make_problem(BASE, dtype)
    problem.inputs["query"] *= factor
    scores = problem.inputs["query"] @ problem.inputs["key"].mT / math.sqrt(8)
    top = scores.topk(2, -1)
    clear = top.values[..., 0] - top.values[..., 1] > 40  # exp(-40) is below any tolerance here
    result = run(problem)
    picked = problem.inputs["value"].gather(2, top.indices[..., :1].expand(-1, -1, -1, 12))
    torch.testing.assert_close(result.out[clear], picked[clear], rtol=0, atol=CLOSE[dtype])
    assert clear.sum() >= 3
    assert all(t.isfinite().all() for t in result.tensors().values())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_overflowing_scores_give_nan(dtype: torch.dtype) -> None:
    problem = make_problem(BASE, dtype)
    largest = torch.finfo(dtype).max
    problem.inputs["query"][0, 0, 7] = largest
    out = flash_attention.attention(**problem.inputs)
    assert out[0, 0, 7].isnan().all()
    assert out[0, 1].isfinite().all() and out[0, 0, :7].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bias_of_the_largest_and_smallest_float(dtype: torch.dtype) -> None:
    """finfo.max on a key gives it all the weight; finfo.min on another removes that one."""
    problem = make_problem(replace(BASE, bias="LS"), dtype)
    problem.inputs["bias"][:, 9] = torch.finfo(dtype).max
    problem.inputs["bias"][:, 3] = torch.finfo(dtype).min
    result = run(problem)
    expected = problem.inputs["value"][:, :, 9:10].expand(-1, -1, 20, -1)
    torch.testing.assert_close(result.out, expected, rtol=0, atol=CLOSE[dtype])
    assert all(t.isfinite().all() for t in result.tensors().values())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_denormal_inputs(dtype: torch.dtype) -> None:
    """Denormal inputs may be flushed to 0: all weights are equal either way."""
    problem = make_problem(BASE, dtype)
    tiny = torch.finfo(dtype).smallest_normal / 8
    problem.inputs["query"] = problem.inputs["query"] * tiny
    out = flash_attention.attention(**problem.inputs)
    mean = problem.inputs["value"].mean(2, keepdim=True).expand_as(out)
    torch.testing.assert_close(out, mean, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("flush", [False, True], ids=["denormals-kept", "denormals-flushed"])
@pytest.mark.parametrize("fails", [False, True], ids=["good-call", "refused-call"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_flush_denormal_mode_of_the_caller_is_preserved(
    dtype: torch.dtype, fails: bool, flush: bool
) -> None:
    """The kernels may flush denormals, but must restore the caller's mode."""
    half = torch.full((1,), 0.5, dtype=dtype)
    denormal = torch.full((1,), torch.finfo(dtype).smallest_normal, dtype=dtype)
    problem = make_problem(replace(BASE, queries=200, keys=300), dtype)
    torch.set_flush_denormal(flush)
    try:
        before = (half * denormal).item()
        if fails:
            with pytest.raises(ValueError, match="block_size"):
                flash_attention.attention(**problem.inputs, block_size=0)
        else:
            run(problem)
        assert (half * denormal).item() == before
        assert (before == 0) == flush
    finally:
        torch.set_flush_denormal(False)


# --- zero sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{}, {"causal": True}, {"dropout": 0.5}], ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"),
    [s for s in itertools.product((0, 2), (0, 3), (0, 5), (0, 7)) if 0 in s],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_zero_sizes(
    dtype: torch.dtype,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    option: dict[str, object],
) -> None:
    problem = make_problem(Spec(2, 3, queries=5, keys=7, bias="BHLS", **option), dtype)
    problem.inputs = {
        "query": problem.inputs["query"][:batch, :heads, :queries],
        "key": problem.inputs["key"][:batch, :heads, :keys],
        "value": problem.inputs["value"][:batch, :heads, :keys],
        "bias": problem.inputs["bias"][:batch, :heads, :queries, :keys],
    }
    problem.grad_out = problem.grad_out[:batch, :heads, :queries]
    problem.grad_lse = problem.grad_lse[:batch, :heads, :queries]
    result = run(problem)
    assert result.out.shape == (batch, heads, queries, 12) and (result.out == 0).all()
    assert result.lse.shape == (batch, heads, queries) and (result.lse == -INF).all()
    for name, grad in zip(problem.inputs, result.grads.values(), strict=True):
        assert grad.shape == problem.inputs[name].shape and (grad == 0).all()


@pytest.mark.parametrize("bias", ["", "S", "L1", "1H1S", "B1L1"])
@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bias_gradient_is_zero_for_empty_scores(dtype: torch.dtype, empty: str, bias: str) -> None:
    problem = make_problem(replace(BASE, bias=bias, **{empty: 0}), dtype)
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
    try:
        grad = run(problem).grads["dbias"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert grad.shape == problem.inputs["bias"].shape and (grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_zero_value_dim_and_zero_head_dim(dtype: torch.dtype) -> None:
    """Dv = 0 gives an empty output; D = 0 gives scores of 0, and so the mean of V."""
    problem = make_problem(BASE, dtype)
    query, key, value = problem.inputs.values()
    out, lse = flash_attention.attention_with_lse(query, key, value[..., :0])
    assert out.shape == (1, 2, 20, 0) and lse.isfinite().all()
    out, lse = flash_attention.attention_with_lse(query[..., :0], key[..., :0], value)
    mean = value.mean(2, keepdim=True).expand_as(out)
    torch.testing.assert_close(out, mean, rtol=0, atol=CLOSE[dtype])
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(37)), rtol=0, atol=CLOSE[dtype])
