"""Bugs in the CPU attention of torch 2.13 that must not occur here.

1. It reads out of bounds if key and value have different lengths. 2. Gradients of rows masked with
a finite value are S times too large. 3. A NaN query row returns 0. 4. It silently takes O(L S)
memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import flash_attention
import pytest
import torch

from support.checks import run, run_output_only
from support.problems import DTYPES, Problem, Spec, dtype_name, make_problem
from support.tolerances import CLOSE, UNIT_ROUNDOFF

# --- 1. lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [16, 4_000_000])
def test_value_of_another_length_is_refused(keys: int) -> None:
    query = torch.randn(1, 1, 16, 8, requires_grad=True)
    key = torch.randn(1, 1, keys, 8)
    value = torch.randn(1, 1, 4_000_016 - keys, 1)
    expected = rf"one length, got {keys} and {4_000_016 - keys}"
    with pytest.raises(ValueError, match=expected):
        flash_attention.attention(query, key, value)
    with pytest.raises(ValueError, match=expected):
        flash_attention.attention_with_lse(query, key, value)


@pytest.mark.parametrize(("keys", "values"), [(16, 17), (17, 16), (64, 63), (1, 2), (0, 1), (1, 0)])
@pytest.mark.parametrize("rank", [3, 4])
def test_off_by_one_key_and_value_lengths_are_refused(rank: int, keys: int, values: int) -> None:
    shape = (2, 3)[: rank - 2]
    with pytest.raises(ValueError, match=rf"one length, got {keys} and {values}"):
        flash_attention.attention(
            torch.randn(*shape, 5, 8), torch.randn(*shape, keys, 8), torch.randn(*shape, values, 8)
        )


# --- 2. finite masks ----------------------------------------------------------------------------


def with_bias(problem: Problem, bias: torch.Tensor) -> Problem:
    problem.inputs["bias"] = bias.to(problem.dtype)
    return problem


@pytest.mark.parametrize("fill", [-1e9, "finfo.min"])
@pytest.mark.parametrize("keys", [5, 64, 130, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_mask_fill_that_absorbs_the_scores(
    dtype: torch.dtype, keys: int, fill: float | str
) -> None:
    """Each weight of such a row is 1/S, so output and gradients are those of the mean of V."""
    fill = torch.finfo(dtype).min if fill == "finfo.min" else fill
    spec = Spec(1, 2, queries=6, keys=keys, bias="LS", scale=1e-12 if fill == -1e9 else None)
    bias = torch.zeros(6, keys)
    problem = with_bias(make_problem(spec, dtype), bias)
    problem.inputs["bias"][2:4] = fill
    actual = run(problem)
    value, slope = problem.inputs["value"], problem.grad_out @ problem.inputs["value"].mT
    mean = value.mean(2, keepdim=True).expand(-1, -1, 2, -1)
    torch.testing.assert_close(actual.out[:, :, 2:4], mean, rtol=0, atol=CLOSE[dtype])
    weighted = (slope - slope.mean(-1, keepdim=True) + problem.grad_lse.unsqueeze(-1)) / keys
    torch.testing.assert_close(
        actual.grads["dbias"][2:4], weighted.sum((0, 1))[2:4], rtol=0, atol=10 * CLOSE[dtype]
    )
    assert all(torch.isfinite(t).all() for t in actual.tensors().values())


@pytest.mark.parametrize("shift", [-1e9, -1e4, 1e4])
@pytest.mark.parametrize("keys", [5, 64, 130, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_constant_shift_of_the_logits(dtype: torch.dtype, keys: int, shift: float) -> None:
    """Saving only m + log(l) would round away log(l): gradients up to S times too large.

    The shift rounds the logits by shift * unit roundoff; the tolerance is a few times that. At 1e9
    float32 keeps nothing of the logits, so there the shift is limited to 1e4.
    """
    if dtype == torch.float32:
        shift = math.copysign(min(abs(shift), 1e4), shift)
    spec = Spec(1, 2, queries=6, keys=keys, bias="LS")
    shifted = run(with_bias(make_problem(spec, dtype), torch.full((6, keys), shift)))
    plain = run(with_bias(make_problem(spec, dtype), torch.zeros(6, keys)))
    plain.lse += shift
    tolerance = 10 * abs(shift) * UNIT_ROUNDOFF[dtype] + CLOSE[dtype]
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(
            shifted.tensors()[name], tensor, rtol=0, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("shift", [-1e6, -1e4, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_exact_shift_of_the_logits_keeps_the_gradients(dtype: torch.dtype, shift: float) -> None:
    """Integer logits plus an integer shift are exact, so the shift must not change gradients."""
    problem = make_problem(
        Spec(1, 2, queries=64, keys=64, head_dim=16, bias="LS", scale=1.0), dtype
    )
    for name in ("query", "key"):
        problem.inputs[name] = problem.inputs[name].round().clamp(-2, 2)
    plain = run(with_bias(problem, torch.zeros(64, 64)))
    shifted = run(with_bias(problem, torch.full((64, 64), shift)))
    for name, gradient in plain.grads.items():
        torch.testing.assert_close(
            shifted.grads[name], gradient, rtol=0, atol=CLOSE[dtype], msg=name
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_left_padding_with_the_lowest_float(dtype: torch.dtype) -> None:
    """S = 128 with 40 left-padded positions, as from a tokenizer: 40 rows see only padding."""
    length, padding = 128, 40
    problem = make_problem(Spec(2, 2, queries=length, keys=length, bias="1H1S"), dtype)
    lowest = torch.finfo(dtype).min
    bias = torch.full((length, length), lowest, dtype=dtype).triu(1)
    bias[:, :padding] = lowest
    with_bias(problem, bias)
    actual = run_output_only(problem, flash_attention.attention)
    expected = run_output_only(
        problem, lambda **x: flash_attention.standard_attention(**without_tiling(x))
    )
    for name in ("dq", "dk", "dv"):  # gradients of order 1 to 10
        torch.testing.assert_close(
            actual.grads[name], expected.grads[name], rtol=0, atol=10 * CLOSE[dtype], msg=name
        )


def without_tiling(arguments: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in arguments.items() if k not in ("block_size", "use_simd")}


# --- 3. NaN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("non_finite", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("keys", [1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 65])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_query_affects_only_its_row(
    dtype: torch.dtype, keys: int, non_finite: float
) -> None:
    problem = make_problem(Spec(1, 2, queries=9, keys=keys), dtype)
    clean = run(problem).out
    problem.inputs["query"][0, 1, 4, 2] = non_finite
    out = flash_attention.attention(**problem.inputs)
    assert out[0, 1, 4].isnan().all()
    out[0, 1, 4] = clean[0, 1, 4]
    assert torch.equal(out, clean)


# --- 4. memory ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peak_increases() -> dict[str, int]:
    """The increase in peak memory, in bytes, of each scenario of memory_child.py."""
    child = Path(__file__).with_name("memory_child.py")
    finished = subprocess.run(
        [sys.executable, str(child)], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    return report["increases"] | {"matrix": report["matrix"]}


@pytest.mark.parametrize(
    "scenario",
    [
        "plain",
        "dropout",
        "bias-per-key",
        "bias-per-row",
        "three-dimensional",
        "value-of-another-width",
        "last-dimension-strided",
        "one-kv-head",
        "expanded-bool-mask",
        "causal",
    ],
)
def test_no_score_matrix_is_allocated(peak_increases: dict[str, int], scenario: str) -> None:
    """A float32 matrix takes 134 MB; the limit of an eighth also detects a matrix of bytes."""
    assert peak_increases[scenario] < peak_increases["matrix"] / 8
