"""Edge cases of windows, ALiBi slopes and sinks: huge values, NaN, fully masked rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import flash_attention
import pytest
import torch

from support.checks import check, run
from support.problems import DTYPES, Problem, Spec, dtype_name, make_problem
from support.reference import Result
from support.tolerances import CLOSE

BASE = Spec(1, 3, queries=40, keys=57)
NAN, INF = math.nan, math.inf
LARGEST, SMALLEST = 2**63 - 1, -(2**63)


def assert_same_bits(actual: Result, expected: Result, names: tuple[str, ...] = ()) -> None:
    for name in names or tuple(expected.tensors()):
        assert torch.equal(actual.tensors()[name], expected.tensors()[name]), name


def assert_close(actual: Result, expected: Result, dtype: torch.dtype) -> None:
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(
            actual.tensors()[name], tensor, rtol=0, atol=CLOSE[dtype], msg=name
        )


# --- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [(-1, -1), (57, 57), (57, -1), (-1, 57), (2**62, 2**62), (LARGEST, LARGEST), (LARGEST, -1)],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_window_wider_than_the_keys_has_no_effect(
    dtype: torch.dtype, window: tuple[int, int]
) -> None:
    expected = run(make_problem(BASE, dtype))
    assert_close(run(make_problem(replace(BASE, window=window), dtype)), expected, dtype)


def test_scalar_window_sets_both_sides() -> None:
    inputs = make_problem(BASE, torch.float64).inputs
    expected = flash_attention.attention(**inputs, window=(4, 4))
    assert torch.equal(torch.ops.flash.attention(**inputs, window=4), expected)


@pytest.mark.parametrize("left", [-1, 0, 3, 100])
@pytest.mark.parametrize("right", [-1, 0, 5, LARGEST])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_causal_sets_the_right_window_to_zero(dtype: torch.dtype, right: int, left: int) -> None:
    causal = run(make_problem(replace(BASE, window=(left, right), causal=True), dtype))
    assert_same_bits(causal, run(make_problem(replace(BASE, window=(left, 0)), dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_diagonal_window_copies_the_values(dtype: torch.dtype) -> None:
    problem = make_problem(replace(BASE, window=(0, 0)), dtype)
    result = run(problem)
    assert torch.equal(result.out, problem.inputs["value"][:, :, 17:])  # queries are the last ones
    # With one key, the score affects only lse.
    only_out = make_problem(replace(BASE, window=(0, 0)), dtype)
    only_out.grad_lse = torch.zeros_like(only_out.grad_lse)
    dq = run(only_out).grads["dq"]
    torch.testing.assert_close(dq, torch.zeros_like(dq), rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("lengths", [(1, 300), (300, 1), (90, 300), (300, 90), (257, 257)], ids=str)
@pytest.mark.parametrize("window", [(0, 0), (7, 0), (0, 7), (40, 25), (3, -1), (-1, 3)], ids=str)
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_windows_at_various_lengths(
    dtype: torch.dtype, block_size: int, window: tuple[int, int], lengths: tuple[int, int]
) -> None:
    """Several blocks in both dimensions; some rows are fully masked if L > S."""
    spec = Spec(
        1, 2, queries=lengths[0], keys=lengths[1], window=window, block_size=block_size, sinks="H"
    )
    check(make_problem(spec, dtype))


@pytest.mark.parametrize("window", [(4, 2), (0, 0), (LARGEST, 0), (0, LARGEST), (-1, 2), (4, -1)])
@pytest.mark.parametrize("option", [{}, {"mask": "LS"}, {"bias": "LS"}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_windows_with_extreme_positions(
    dtype: torch.dtype, option: dict[str, Any], window: tuple[int, int]
) -> None:
    """Compared with masks from Python integers, which do not overflow."""
    problem = make_problem(replace(BASE, window=window, **option), dtype)
    some = [SMALLEST, SMALLEST + 1, -(2**62), -1000, -3, -1, 0, 1, 30, 56, 57, 61, 62, 2**62]
    positions = [*some, LARGEST - 1, LARGEST, *range(10, 34)]
    left, right = (LARGEST * 4 if w == -1 else w for w in window)
    allowed = torch.tensor([[p - left <= j <= p + right for j in range(57)] for p in positions])
    problem.options["query_positions"] = torch.tensor(positions)
    actual = run(problem)
    problem.options["window"] = None
    bias = problem.inputs.get("bias")
    if bias is None or bias.dtype == torch.bool:
        problem.inputs["bias"] = allowed if bias is None else bias & allowed
    else:
        problem.inputs["bias"] = bias.masked_fill(~allowed, -INF)
    expected = run(problem)
    assert_close(actual, expected, dtype)
    empty = ~allowed.any(-1)
    assert empty.any() and (actual.out[..., empty, :] == 0).all()
    assert (actual.lse[..., empty] == -INF).all() and (actual.grads["dq"][..., empty, :] == 0).all()


@pytest.mark.parametrize("block_size", [1, 16, 64])
@pytest.mark.parametrize("option", [{}, {"softcap": 2.0}, {"alibi": "H", "sinks": "H"}], ids=str)
@pytest.mark.parametrize("non_finite", [NAN, INF], ids=["nan", "inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_key_affects_only_its_window(
    dtype: torch.dtype, non_finite: float, option: dict[str, Any], block_size: int
) -> None:
    """Rows that attend the key become NaN, and keys that those rows attend; others do not."""
    left, right, at, length = 6, 3, 70, 150
    spec = Spec(1, 2, queries=length, keys=length, window=(left, right), block_size=block_size)
    problem = make_problem(replace(spec, **option), dtype)
    clean = run(problem)
    problem.inputs["key"][0, 0, at] = non_finite
    problem.inputs["value"][0, 0, at] = non_finite
    dirty = run(problem)
    positions = torch.arange(length)
    rows = (positions >= at - right) & (positions <= at + left)
    keys = (positions >= at - right - left) & (positions <= at + left + right)
    results = {"out": rows, "lse": rows, "dq": rows, "dk": keys, "dv": keys}
    for name, touched in results.items():
        actual, expected = dirty.tensors()[name], clean.tensors()[name]
        torch.testing.assert_close(
            actual[0, 0, ~touched], expected[0, 0, ~touched], rtol=0, atol=CLOSE[dtype], msg=name
        )
        assert torch.equal(actual[0, 1], expected[0, 1]), name
    assert dirty.out[0, 0, rows].isnan().all()


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_keys_outside_every_window_have_no_effect(dtype: torch.dtype, side: str) -> None:
    window, positions, hidden = {
        "before": ((4, -1), torch.arange(40).clamp(min=20), slice(0, 16)),
        "after": ((-1, 5), torch.arange(40).clamp(max=20), slice(26, 57)),
    }[side]
    problem = make_problem(replace(BASE, window=window, softcap=2.0, alibi="H"), dtype)
    problem.options["query_positions"] = positions
    clean = run(problem)
    problem.inputs["key"][:, :, hidden] = NAN
    problem.inputs["value"][:, :, hidden] = NAN
    dirty = run(problem)
    assert_close(dirty, clean, dtype)
    for name in ("dk", "dv"):
        assert (dirty.grads[name][:, :, hidden] == 0).all(), name


@pytest.mark.parametrize("bias", ["BHLS", "LS", "S", "L1"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bias_gradient_is_zero_outside_the_window(dtype: torch.dtype, bias: str) -> None:
    spec = Spec(2, 2, queries=130, keys=141, bias=bias, window=(20, 3), alibi="BH", softcap=2.0)
    check(make_problem(spec, dtype))


# --- slopes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_zero_slopes_have_no_effect(dtype: torch.dtype) -> None:
    problem = make_problem(BASE, dtype)
    expected = run(problem)
    problem.inputs["alibi_slopes"] = torch.zeros(3, dtype=dtype)
    assert_same_bits(run(problem), expected)


@pytest.mark.parametrize("kind", ["expanded", "strided", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_slopes_and_sinks_of_any_strides(dtype: torch.dtype, kind: str) -> None:
    problem = make_problem(replace(BASE, batch=2, alibi="BH", sinks="BH"), dtype)
    slopes, sinks = problem.inputs["alibi_slopes"], problem.inputs["sinks"]
    if kind == "expanded":
        slopes, sinks = slopes[:1, :1].expand(2, 3), sinks[:1, :1].expand(2, 3)
    elif kind == "strided":
        slopes = slopes.repeat_interleave(2, 1)[:, ::2]
        sinks = sinks.repeat_interleave(3, 1)[:, ::3]
    else:
        slopes, sinks = slopes.T.contiguous().T, sinks.T.contiguous().T
    problem.inputs |= {"alibi_slopes": slopes, "sinks": sinks}
    check(problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_slopes_with_distant_positions(dtype: torch.dtype) -> None:
    """An equal change of all distances shifts every score of a row and changes no weight."""
    problem = make_problem(replace(BASE, alibi="H"), dtype)
    problem.options["query_positions"] = torch.full((40,), 57)
    near = run(problem).out
    problem.options["query_positions"] = torch.full((40,), 557)
    # Scores of up to 557 times a slope of 0.5 have larger rounding errors than those of order 1.
    torch.testing.assert_close(run(problem).out, near, rtol=0, atol=50 * CLOSE[dtype])
    for extreme in (LARGEST, SMALLEST):
        problem.options["query_positions"] = torch.full((40,), extreme)
        assert run(problem).out.isfinite().all()


@pytest.mark.parametrize("non_finite", [NAN, INF, -INF], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_slope_affects_only_its_head(dtype: torch.dtype, non_finite: float) -> None:
    problem = make_problem(replace(BASE, alibi="H"), dtype)
    clean = run(problem)
    problem.inputs["alibi_slopes"][1] = non_finite
    dirty = run(problem)
    assert dirty.out[0, 1].isnan().all()
    for name in ("out", "lse", "dq", "dk", "dv"):
        for head in (0, 2):
            assert torch.equal(dirty.tensors()[name][0, head], clean.tensors()[name][0, head]), name


# --- sinks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [{}, {"window": (5, 2)}, {"mask": "LS"}, {"dropout": 0.4}], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_sink_of_minus_infinity_has_no_effect(dtype: torch.dtype, option: dict[str, Any]) -> None:
    problem = make_problem(replace(BASE, **option), dtype)
    if "bias" in problem.inputs:
        problem.inputs["bias"][3] = False
    expected = run(problem)
    problem.inputs["sinks"] = torch.full((3,), -INF, dtype=dtype)
    problem.differentiable = (*problem.differentiable, "sinks")
    actual = run(problem)
    assert_same_bits(actual, expected, tuple(expected.tensors()))
    assert (actual.grads["dsinks"] == 0).all()


@pytest.mark.parametrize("option", [{}, {"window": (5, 2)}, {"causal": True}], ids=str)
@pytest.mark.parametrize("non_finite", [NAN, INF], ids=["nan", "inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_sink_affects_only_its_head(
    dtype: torch.dtype, non_finite: float, option: dict[str, Any]
) -> None:
    problem = make_problem(replace(BASE, sinks="H", **option), dtype)
    clean = run(problem)
    problem.inputs["sinks"][1] = non_finite
    dirty = run(problem)
    for name in ("out", "dq", "dk", "dv"):
        actual, expected = dirty.tensors()[name], clean.tensors()[name]
        for head in (0, 2):
            assert torch.equal(actual[0, head], expected[0, head]), name
    assert dirty.out[0, 1].isnan().all() and dirty.grads["dq"][0, 1].isnan().all()
    assert dirty.grads["dsinks"].isnan().tolist() == [False, True, False]


def only_sinks(dtype: torch.dtype, keys: int) -> Problem:
    """Every row is fully masked except for the sink: no keys, or none within the window."""
    problem = make_problem(Spec(2, 3, queries=40, keys=9, sinks="H"), dtype)
    if keys == 0:
        problem.inputs["key"] = problem.inputs["key"][:, :, :0]
        problem.inputs["value"] = problem.inputs["value"][:, :, :0]
    else:
        problem.options |= {"window": (3, 0), "query_positions": torch.full((40,), -5)}
    return problem


@pytest.mark.parametrize("keys", [0, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fully_masked_row_with_a_sink(dtype: torch.dtype, keys: int) -> None:
    """out is 0 and lse is the sink, which gets the gradient of lse."""
    problem = only_sinks(dtype, keys)
    result = run(problem)
    sinks = problem.inputs["sinks"]
    assert (result.out == 0).all()
    assert torch.equal(result.lse, sinks.view(1, 3, 1).expand(2, 3, 40))
    for name in ("dq", "dk", "dv"):
        assert (result.grads[name] == 0).all(), name
    expected = problem.grad_lse.double().sum((0, 2)).to(dtype)
    torch.testing.assert_close(result.grads["dsinks"], expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("scale", [1.0, 40.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_sink_far_above_or_below_the_scores(dtype: torch.dtype, scale: float) -> None:
    problem = make_problem(replace(BASE, sinks="H"), dtype)
    problem.inputs["sinks"] = torch.tensor([scale, -scale, 0.0], dtype=dtype)
    check(problem)


# --- zero sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize("queries", [0, 5])
@pytest.mark.parametrize("keys", [0, 7])
@pytest.mark.parametrize("slopes", ["H", "BH"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_zero_sizes(
    dtype: torch.dtype, slopes: str, keys: int, queries: int, heads: int, batch: int
) -> None:
    spec = Spec(2, 3, queries=5, keys=7, alibi=slopes, sinks="H", window=(2, 1), softcap=2.0)
    problem = make_problem(spec, dtype)
    inputs = problem.inputs
    kept = inputs["alibi_slopes"][..., :heads]
    problem.inputs = {
        "query": inputs["query"][:batch, :heads, :queries],
        "key": inputs["key"][:batch, :heads, :keys],
        "value": inputs["value"][:batch, :heads, :keys],
        "alibi_slopes": kept[:batch] if slopes == "BH" else kept,
        "sinks": inputs["sinks"][:heads],
    }
    problem.grad_out = problem.grad_out[:batch, :heads, :queries]
    problem.grad_lse = problem.grad_lse[:batch, :heads, :queries]
    result = run(problem)
    assert result.out.shape == (batch, heads, queries, 12)
    assert result.lse.shape == (batch, heads, queries)
    assert result.grads["dslopes"].shape == problem.inputs["alibi_slopes"].shape
    assert result.grads["dsinks"].shape == (heads,)
    if 0 in (batch, heads, queries, keys):
        assert (result.out == 0).all() and (result.grads["dslopes"] == 0).all()
    if 0 in (batch, queries):
        assert (result.grads["dsinks"] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_zero_value_dim_and_zero_head_dim(dtype: torch.dtype) -> None:
    spec = replace(BASE, alibi="H", sinks="H", window=(9, 4), softcap=2.0)
    problem = make_problem(spec, dtype)
    problem.inputs["value"] = problem.inputs["value"][..., :0]
    problem.grad_out = problem.grad_out[..., :0]
    check(problem)
    problem = make_problem(spec, dtype)
    for name in ("query", "key"):
        problem.inputs[name] = problem.inputs[name][..., :0]
    problem.options["scale"] = 1.0
    check(problem)
