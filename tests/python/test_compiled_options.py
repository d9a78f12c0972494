"""Compiled autograd keeps calls of different options apart: what it traced of one is not the other."""

from __future__ import annotations

import math
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


# Each changes some bit of the gradients of the calls below; block_size and use_simd by rounding.
PAIRS: dict[str, tuple[Options, Options]] = {
    "causal": ({}, {"causal": True}),
    "window-left": ({"window": (3, -1)}, {"window": (7, -1)}),
    "window-right": ({"window": (-1, 2)}, {"window": (-1, 5)}),
    "window-none": ({}, {"window": (5, 5)}),
    "softcap": ({"softcap": 1.5}, {"softcap": 0.5}),
    "softcap-none": ({}, {"softcap": 0.5}),
    "scale": ({"scale": 0.2}, {"scale": 0.7}),
    "scale-none": ({}, {"scale": 0.0}),
    "scale-sign": ({"scale": 0.3}, {"scale": -0.3}),
    "dropout": ({"dropout": 0.2}, {"dropout": 0.6}),
    "dropout-none": ({}, {"dropout": 0.6}),
    "block-size": ({"block_size": 64}, {"block_size": 3}),
    "use-simd": ({"use_simd": True}, {"use_simd": False}),
}


def gradients(calls: list[Options], lse: bool) -> list[Tensor]:
    """Of one loss of all calls, in one backward pass."""
    query, key, value = (random(2, 3, n, 8).requires_grad_() for n in (40, 70, 71))
    value = value[:, :, :70]
    loss = torch.zeros(())
    torch.manual_seed(0)
    for n, options in enumerate(calls):
        if lse:
            out, other = flash_attention.attention_with_lse(query, key, value, **options)
            loss = loss + (n + 1) * other.masked_fill(other == -math.inf, 0.0).sum()
        else:
            out = flash_attention.attention(query, key, value, **options)
        loss = loss + (n + 1) * out.sin().sum()
    leaves = [query, key]
    loss.backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("lse", [False, True], ids=["out", "lse"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_one_pass_after_another(pair: tuple[Options, Options], lse: bool) -> None:
    """The second pass has the graph of the first, but for the number."""
    eager = [gradients([options], lse) for options in pair]
    assert not torch.equal(eager[0][0], eager[1][0]), "the pair is of no use"
    with compiled_autograd._enable(torch.compile(backend="eager")):
        traced = [gradients([options], lse) for options in (*pair, *pair)]
    for found, expected in zip(traced, eager * 2, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_two_calls_in_one_pass(pair: tuple[Options, Options]) -> None:
    for calls in (list(pair), list(reversed(pair))):
        eager = gradients(calls, lse=False)
        with compiled_autograd._enable(torch.compile(backend="eager")):
            traced = gradients(calls, lse=False)
        assert all(torch.equal(a, b) for a, b in zip(traced, eager, strict=True))


@pytest.mark.parametrize("name", ["bias", "query_positions", "alibi_slopes", "sinks"])
def test_tensors_that_are_there_or_not(name: str) -> None:
    tensors = {
        "bias": random(40, 70),
        "query_positions": torch.arange(40) % 17,
        "alibi_slopes": random(3).abs(),
        "sinks": random(3),
    }
    pair: tuple[Options, Options] = ({"causal": True}, {"causal": True, name: tensors[name]})
    test_one_pass_after_another(pair, lse=False)


@pytest.mark.parametrize("name", ["bias", "query_positions", "alibi_slopes", "sinks"])
def test_tensors_of_other_values(name: str) -> None:
    tensors = {
        "bias": [random(40, 70), random(40, 70) > 0],
        "query_positions": [torch.arange(40) % 17, torch.arange(40)],
        "alibi_slopes": [random(3).abs(), random(3).abs() + 1],
        "sinks": [random(3), random(3) + 2],
    }
    one, other = ({"causal": True, name: tensor} for tensor in tensors[name])
    test_one_pass_after_another((one, other), lse=False)
