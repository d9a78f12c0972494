"""Runs the operator on a `Problem` and holds it to the truth."""

from __future__ import annotations

from collections.abc import Callable

import flash_attention
import torch
from problems import Problem
from reference import NAMES, Result, definition, differentiate, rounding_model
from tolerances import (
    FLOAT32_ROUNDING_UNITS,
    FLOAT32_TIMES_MATH_PATH,
    FLOAT64_ABSOLUTE,
    UNIT_ROUNDOFF,
)
from torch import Tensor


def run(problem: Problem) -> Result:
    """(out, lse) of attention_with_lse and every gradient, through both outputs."""
    torch.manual_seed(problem.seed)
    return differentiate(
        lambda x: flash_attention.attention_with_lse(**x, **problem.options), problem, problem.dtype
    )


def run_output_only(problem: Problem, call: Callable[..., Tensor]) -> Result:
    """out of `call` and its gradients; the lse is absent (NaN) and gets no gradient."""
    torch.manual_seed(problem.seed)
    leaves = problem.leaves()
    out = call(**leaves, **problem.options)
    names = problem.differentiable
    values = torch.autograd.grad(out, [leaves[n] for n in names], problem.grad_out)
    grads = {NAMES[n]: v for n, v in zip(names, values, strict=True)}
    return Result(out.detach(), torch.full_like(problem.grad_lse, torch.nan), grads)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| in float64; equal infinities differ by 0, a stray NaN by infinity."""
    actual, expected = actual.double(), expected.double()
    difference = (actual - expected).abs().masked_fill(actual == expected, 0.0)
    return difference.nan_to_num(torch.inf).max().item() if difference.numel() else 0.0


def assert_close_to_truth(actual: Result, problem: Problem, *, skip_lse: bool = False) -> None:
    """Holds every tensor of `actual` to the float64 truth, by the rule of its dtype."""
    truth = definition(problem, torch.float64).tensors()
    math_path: dict[str, Tensor] = {}
    units: dict[str, float] = {}
    failures = []
    for name, tensor in actual.tensors().items():
        if name == "lse" and skip_lse:
            continue
        assert tensor.shape == truth[name].shape, (name, tensor.shape, truth[name].shape)
        assert tensor.dtype == problem.dtype, (name, tensor.dtype)
        error = largest_difference(tensor, truth[name])
        if problem.dtype == torch.float64:
            if not error < FLOAT64_ABSOLUTE:
                failures.append(f"{name}: error {error:.3g}, allowed {FLOAT64_ABSOLUTE:.3g}")
            continue
        if not math_path:
            math_path = definition(problem, torch.float32).tensors()
        limit = FLOAT32_TIMES_MATH_PATH * largest_difference(math_path[name], truth[name])
        if not error <= limit:  # only now is the model of unavoidable rounding worth its time
            units = units or rounding_model(problem)
            floor = FLOAT32_ROUNDING_UNITS * UNIT_ROUNDOFF[problem.dtype] * units[name]
            if not error <= max(limit, floor):
                failures.append(
                    f"{name}: error {error:.3g}, allowed twice the math path's {limit / 2:.3g}"
                    f" or the rounding floor {floor:.3g}"
                )
    assert not failures, f"{problem.spec}\n" + "\n".join(failures)


def check(problem: Problem) -> None:
    """The operator agrees with the truth on `problem`: out, lse and every gradient."""
    assert_close_to_truth(run(problem), problem)
