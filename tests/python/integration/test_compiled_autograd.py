"""Compiled autograd distinguishes calls by their options: a trace is not reused for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd

Options = dict[str, Any]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# Each gives different gradients: block_size by rounding, use_simd if a SIMD kernel is active.
BIAS, POSITIONS = random(40, 70), torch.arange(40) % 17
SLOPES, SINKS = random(3).abs(), random(3)
VARIANTS: list[Options] = [
    {},
    {"causal": True},
    {"window": (3, -1)},
    {"window": (7, -1)},
    {"window": (-1, 2)},
    {"window": (-1, 5)},
    {"window": (5, 5)},
    {"softcap": 1.5},
    {"softcap": 0.5},
    {"scale": 0.2},
    {"scale": 0.7},
    {"scale": -0.2},
    {"scale": 0.0},
    {"dropout": 0.2},
    {"dropout": 0.6},
    {"block_size": 3},
    {"use_simd": False},
    {"bias": BIAS},
    {"bias": 2 * BIAS},
    {"bias": BIAS > 0},
    {"causal": True, "query_positions": POSITIONS},
    {"causal": True, "query_positions": POSITIONS + 1},
    {"alibi_slopes": SLOPES},
    {"alibi_slopes": SLOPES + 1},
    {"sinks": SINKS},
    {"sinks": SINKS + 2},
]


def as_traced(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Runs a trace without compiling it; compiled autograd decides when to reuse it."""
    return graph


def gradients(calls: list[Options]) -> list[Tensor]:
    """The gradients of all calls, in one backward pass."""
    query, key, value = (random(2, 3, n, 8).requires_grad_() for n in (40, 70, 70))
    outputs: list[Tensor] = []
    torch.manual_seed(0)
    for options in calls:
        outputs += flash_attention.attention_with_lse(query, key, value, **options)
    torch.autograd.backward(outputs, [random(*x.shape) for x in outputs])
    return [query.grad, key.grad, value.grad]


def test_successive_backward_passes() -> None:
    """The graphs differ only in one number or tensor."""
    eager = [gradients([options]) for options in VARIANTS]
    different = {tuple(query.flatten().tolist()) for query, _, _ in eager}
    assert len(different) >= len(VARIANTS) - 1
    with compiled_autograd._enable(as_traced):
        traced = [gradients([options]) for options in VARIANTS * 2]
    for found, expected, options in zip(traced, eager * 2, VARIANTS * 2, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), options


def test_two_calls_in_one_backward_pass() -> None:
    for pair in ([7, 8], [8, 7], [0, 7], [1, 10]):
        calls = [VARIANTS[n] for n in pair]
        eager = gradients(calls)
        with compiled_autograd._enable(as_traced):
            traced = gradients(calls)
        for one, other in zip(traced, eager, strict=True):
            assert torch.equal(one, other)
