"""Runs the operator on a `Problem` and compares it with the float64 reference."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flash_attention
import torch
from torch import Tensor

from support.instruction_sets import WITH_TILES, active
from support.problems import DTYPES_16BIT, Problem, compute_dtype
from support.reference import (
    NAMES,
    ErrorSize,
    Result,
    definition,
    differentiate,
    operand_rounding,
    rounding_model,
)
from support.tolerances import (
    ABSOLUTE_16BIT,
    CLOSE,
    FLOAT32_ROUNDING_UNITS_LARGEST,
    FLOAT32_ROUNDING_UNITS_RMS,
    FLOAT32_TIMES_MATH_PATH,
    FLOAT32_UNDERFLOW,
    FLOAT64_ABSOLUTE,
    MIN_COUNT_FOR_RMS,
    TILE_ROUNDING_UNITS_LARGEST,
    TILE_SIZE_ROUNDED,
    UNIT_ROUNDOFF,
)


def run(problem: Problem) -> Result:
    """(out, lse) of attention_with_lse and the gradient of both for every input."""
    torch.manual_seed(problem.seed)
    return differentiate(
        lambda x: flash_attention.attention_with_lse(**x, **problem.options), problem, problem.dtype
    )


def run_output_only(problem: Problem, call: Callable[..., Tensor]) -> Result:
    """out of `call` and its gradients; lse is NaN and gets no gradient."""
    torch.manual_seed(problem.seed)
    leaves = problem.leaves()
    out = call(**leaves, **problem.options)
    names = problem.differentiable
    values = torch.autograd.grad(out, [leaves[n] for n in names], problem.grad_out)
    grads = {NAMES[n]: v for n, v in zip(names, values, strict=True)}
    return Result(out.detach(), torch.full_like(problem.grad_lse, torch.nan), grads)


def differences(actual: Tensor, expected: Tensor) -> Tensor:
    """|actual - expected| in float64; 0 for equal infinities, infinity for NaN."""
    actual, expected = actual.double(), expected.double()
    return (actual - expected).abs().masked_fill(actual == expected, 0.0).nan_to_num(torch.inf)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """The maximum of `differences`, or 0 for empty tensors."""
    difference = differences(actual, expected)
    return difference.max().item() if difference.numel() else 0.0


def error_size(actual: Tensor, expected: Tensor, rows: int) -> ErrorSize:
    """Root mean square and maximum error.

    rows: the number of distinct query rows. The rounding of a row sum is one error for the whole
    row, so few rows are few independent errors.
    """
    difference = differences(actual, expected)
    if difference.numel() == 0:
        return ErrorSize(0.0, 0.0)
    # The root mean square of a few errors varies as much as their maximum and adds nothing.
    enough = min(rows, difference.numel()) >= MIN_COUNT_FOR_RMS
    rms = math.sqrt((difference**2).mean().item()) if enough else 0.0
    return ErrorSize(rms, difference.max().item())


def assert_rounded(actual: Tensor, exact: Tensor) -> None:
    """`actual` is `exact` up to float32 errors, rounded once to its own 16-bit type."""
    assert actual.dtype in DTYPES_16BIT and actual.shape == exact.shape
    expected = exact.double()
    size = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    single = CLOSE[torch.float32] * size + ABSOLUTE_16BIT[actual.dtype]
    if actual.dtype == torch.bfloat16 and active() in WITH_TILES:
        single += TILE_SIZE_ROUNDED * size
    allowed = UNIT_ROUNDOFF[actual.dtype] * (expected.abs() + single) + single
    excess = differences(actual, expected) - allowed
    assert (excess <= 0).all(), (
        f"off by {excess.max().item():.3g} more than allowed; the largest value is {size:.3g}"
    )


class Checker:
    """Compares results of one problem with its float64 reference, by the tolerance of its dtype.

    slack: a factor on the tolerance.
    """

    def __init__(self, problem: Problem, slack: float = 1.0) -> None:
        self.problem = problem
        self.slack = slack
        self.reference = definition(problem, torch.float64).tensors()

    @functools.cached_property
    def math_path(self) -> dict[str, Tensor]:
        return definition(self.problem, torch.float32).tensors()

    @functools.cached_property
    def rounding(self) -> dict[str, ErrorSize]:
        return rounding_model(self.problem)

    def tile_error(self, name: str) -> float:
        """The largest error of result `name` from rounding operands to bfloat16 on matrix tiles."""
        if self.problem.dtype != torch.bfloat16 or active() not in WITH_TILES:
            return 0.0
        units = operand_rounding(self.problem).get(name, 0.0)
        return TILE_ROUNDING_UNITS_LARGEST * UNIT_ROUNDOFF[torch.bfloat16] * units

    def rounding_error_message(self, name: str, actual: Tensor) -> str | None:
        expected, dtype = self.reference[name], actual.dtype
        single = FLOAT32_ROUNDING_UNITS_LARGEST * UNIT_ROUNDOFF[torch.float32]
        absolute = self.slack * single * self.rounding[name].largest
        absolute = max(absolute, FLOAT32_UNDERFLOW) + ABSOLUTE_16BIT[dtype]
        absolute += self.slack * self.tile_error(name)
        # Just below a power of two, a value may round by half the spacing above it.
        allowed = UNIT_ROUNDOFF[dtype] * (expected.abs() + absolute) + absolute
        excess = differences(actual, expected) - allowed
        if excess.numel() == 0 or excess.max() <= 0:
            return None
        worst = excess.argmax()
        return (
            f"{name}: {actual.flatten()[worst].item():.6g} for "
            f"{expected.flatten()[worst].item():.6g}, further than one rounding to {dtype} "
            f"and {absolute:.3g}"
        )

    def error_message(self, name: str, actual: Tensor) -> str | None:
        """Describes the mismatch of result `name`, or None."""
        expected = self.reference[name]
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        dtype = self.problem.dtype
        is_rounded = dtype in DTYPES_16BIT and name != "lse"
        assert actual.dtype == (dtype if is_rounded else compute_dtype(dtype)), (name, actual.dtype)
        if is_rounded:
            return self.rounding_error_message(name, actual)
        rows = self.reference["lse"].unique().numel()
        error = error_size(actual, expected, rows)
        if dtype == torch.float64:
            if error.largest < self.slack * FLOAT64_ABSOLUTE:
                return None
            return f"{name}: error {error.largest:.3g}, allowed {self.slack * FLOAT64_ABSOLUTE:.3g}"
        math_error = error_size(self.math_path[name], expected, rows)
        rms = max(FLOAT32_TIMES_MATH_PATH * math_error.rms, FLOAT32_UNDERFLOW)
        largest = max(FLOAT32_TIMES_MATH_PATH * math_error.largest, FLOAT32_UNDERFLOW)
        if error.rms <= rms and error.largest <= largest:
            return None
        unit = self.slack * UNIT_ROUNDOFF[torch.float32]  # the model is slow, so it comes last
        rms_floor = FLOAT32_ROUNDING_UNITS_RMS * unit * self.rounding[name].rms
        largest_floor = FLOAT32_ROUNDING_UNITS_LARGEST * unit * self.rounding[name].largest
        if error.rms <= max(rms, rms_floor) and error.largest <= max(largest, largest_floor):
            return None
        return (
            f"{name}: rms error {error.rms:.3g}, allowed twice the math path's {rms / 2:.3g} or the"
            f" rounding floor {rms_floor:.3g}; largest error {error.largest:.3g}, allowed twice the"
            f" math path's {largest / 2:.3g} or the rounding floor {largest_floor:.3g}"
        )

    def assert_close(self, tensors: dict[str, Tensor]) -> None:
        """Compares each named result with the reference."""
        messages = [self.error_message(name, tensor) for name, tensor in tensors.items()]
        failures = [c for c in messages if c is not None]
        assert not failures, f"{self.problem.spec}\n" + "\n".join(failures)


def assert_close_to_reference(
    actual: Result, problem: Problem, *, skip_lse: bool = False, slack: float = 1.0
) -> None:
    """Compares every tensor of `actual` with the float64 reference."""
    tensors = {n: t for n, t in actual.tensors().items() if not (skip_lse and n == "lse")}
    Checker(problem, slack).assert_close(tensors)


def check(problem: Problem, slack: float = 1.0) -> None:
    """Compares out, lse and every gradient of the operator with the reference."""
    assert_close_to_reference(run(problem), problem, slack=slack)
