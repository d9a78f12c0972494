"""Unusual memory: strides beyond 32 bits, overlapping rows, misalignment, and exhausted memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import flash_attention
import pytest
import torch
from torch import Tensor

from support.checks import check
from support.problems import DTYPES, Problem, Spec, dtype_name, make_problem

SPEC = Spec(1, 2, queries=5, keys=6, head_dim=8, value_dim=8)
# Two rows 8.6 GB apart: with more rows the system might refuse to reserve the memory.
PAIRS = Spec(1, 2, queries=2, keys=2, head_dim=8, value_dim=8)


def far_apart(x: Tensor, dim: int, stride: int) -> Tensor:
    """`x` with the given stride in `dim`; untouched pages take no physical memory."""
    strides = list(x.contiguous().stride())
    strides[dim] = stride
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True))
    spread = torch.empty(extent, dtype=x.dtype).as_strided(x.shape, strides)
    return spread.copy_(x)


# Strides that overflow 32 bits in bytes, and in elements.
@pytest.mark.parametrize("stride", [2**29 + 5, 2**31 + 3], ids=["2**29", "2**31"])
@pytest.mark.parametrize("dim", [1, 2], ids=["heads", "rows"])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_strides_beyond_32_bits(name: str, dim: int, stride: int) -> None:
    problem = make_problem(PAIRS, torch.float32)
    problem.inputs[name] = far_apart(problem.inputs[name], dim, stride)
    check(problem)


@pytest.mark.parametrize("dim", [1, 2, 3], ids=["heads", "rows", "keys"])
def test_bias_strides_beyond_32_bits(dim: int) -> None:
    problem = make_problem(replace(PAIRS, bias="1HLS"), torch.float32)
    problem.inputs["bias"] = far_apart(problem.inputs["bias"], dim, 2**31 + 3)
    check(problem)


def overlapping(problem: Problem) -> dict[str, Tensor]:
    """Rows that start one element apart, as sliding windows over a series."""
    series = torch.randn(64, dtype=problem.dtype)
    shapes = {name: problem.inputs[name].shape for name in ("query", "key", "value")}
    return {name: series.as_strided(shape, (0, 7, 1, 1)) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_overlapping_rows(dtype: torch.dtype) -> None:
    problem = make_problem(SPEC, dtype)
    problem.inputs |= overlapping(problem)
    check(problem)


@pytest.mark.parametrize("offset", range(1, 16))
def test_any_alignment(offset: int) -> None:
    """Results are bitwise equal at every offset from register alignment."""
    query, key, value = make_problem(SPEC, torch.float32).inputs.values()

    def moved(x: Tensor) -> Tensor:
        return torch.empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)

    out = flash_attention.attention(moved(query), moved(key), moved(value))
    assert torch.equal(out, flash_attention.attention(query, key, value))


def huge(queries: int, keys: int, width: int) -> list[Tensor]:
    """Expanded inputs of the given sizes that take a few bytes."""
    one = torch.zeros(1)
    shapes = ((1, 1, queries, width), (1, 1, keys, width), (1, 1, keys, width))
    return [one.expand(shape) for shape in shapes]


TOO_MUCH: dict[str, Callable[[], object]] = {
    "output": lambda: flash_attention.attention(*huge(2**44, 1, 1)),
    "output with lse": lambda: flash_attention.attention_with_lse(*huge(2**44, 1, 1)),
    "copy of rows": lambda: flash_attention.attention(*huge(1, 2**44, 2)),
    "scratch": lambda: flash_attention.attention(*huge(1, 1, 2**42)),
}


@pytest.mark.parametrize("call", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_out_of_memory_is_an_error_without_side_effects(call: Callable[[], object]) -> None:
    inputs = make_problem(SPEC, torch.float32).inputs
    expected = flash_attention.attention(**inputs)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not enough memory|allocate"):
            call()
    assert torch.equal(flash_attention.attention(**inputs), expected)
