"""Sinks where keys are split over threads: each counts once and may be the row maximum."""

from __future__ import annotations

import math

import flash_attention
import pytest
import torch
from torch import Tensor

from support.problems import DTYPES, DTYPES_16BIT, compute_dtype, dtype_name
from support.tolerances import CLOSE, UNIT_ROUNDOFF

KEYS = (2047, 2048, 2500)  # fewer than 2048 keys are not split


def inputs(dtype: torch.dtype, keys: int, queries: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(keys)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 6))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("sink", [-1e4, -60.0, 0.0, 60.0, 1e4, 3e38, -math.inf])
@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_sinks_far_from_the_scores(
    dtype: torch.dtype, keys: int, queries: int, sink: float
) -> None:
    query, key, value = inputs(dtype, keys, queries)
    # One head with an ordinary sink between two with the extreme one.
    sinks = torch.tensor([sink, 0.5, sink], dtype=dtype)
    out, lse = flash_attention.attention_with_lse(query, key, value, sinks=sinks)
    wide = [x.double() for x in (query, key, value)]
    scores = wide[0] @ wide[1].mT / 8**0.5
    column = sinks.double()[:, None, None].expand(2, 3, queries, 1)
    every = torch.cat([scores, column], -1)
    expected = torch.softmax(every, -1)[..., :-1] @ wide[2]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=CLOSE[dtype])
    # An lse as large as the sink is rounded to the spacing there.
    rounding = 4 * UNIT_ROUNDOFF[dtype]
    torch.testing.assert_close(lse.double(), every.logsumexp(-1), rtol=rounding, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_float32_sinks_with_16_bit_inputs(dtype: torch.dtype) -> None:
    query, key, value = inputs(dtype, 2500, 2)
    sinks = torch.tensor([200.0, -200.0, 1.0], dtype=torch.float32)
    out, lse = flash_attention.attention_with_lse(query, key, value, sinks=sinks)
    wide = [x.float() for x in (query, key, value)]
    expected, its_lse = flash_attention.attention_with_lse(*wide, sinks=sinks)
    assert out.dtype == dtype and lse.dtype == compute_dtype(dtype)
    assert torch.equal(out, expected.to(dtype)) and torch.equal(lse, its_lse)


@pytest.mark.parametrize("keys", KEYS)
def test_fully_masked_keys_with_and_without_a_sink(keys: int) -> None:
    """out is 0; lse is the sink, or -inf without one."""
    query, key, value = inputs(torch.float64, keys, 2)
    mask = torch.zeros(keys, dtype=torch.bool)
    sinks = torch.tensor([800.0, -800.0, 0.0], dtype=torch.float64)
    out, lse = flash_attention.attention_with_lse(query, key, value, bias=mask, sinks=sinks)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, sinks[:, None].expand_as(lse))
    out, lse = flash_attention.attention_with_lse(query, key, value, bias=mask)
    assert torch.equal(out, torch.zeros_like(out)) and torch.all(lse == -math.inf)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("keys", KEYS)
def test_gradients_through_a_large_sink(keys: int, queries: int) -> None:
    """The backward recomputes weights from the row statistics that the splits combined."""
    leaves = [x.requires_grad_() for x in inputs(torch.float64, keys, queries)]
    sinks = torch.tensor([[30.0, 5.0, -3.0], [1.0, 60.0, 0.0]], dtype=torch.float64)
    leaves.append(sinks.requires_grad_())
    results = []
    for operator in (flash_attention.attention, flash_attention.standard_attention):
        out = operator(*leaves[:3], sinks=sinks)
        # A sink of 60 scales the output by e^-60.
        scale = torch.tensor([[[1e10], [1.0], [1.0]], [[1.0], [1e20], [1.0]]]).double()
        grads = torch.autograd.grad((out * scale.unsqueeze(-1)).sin().sum(), leaves)
        results.append([out.detach(), *grads])
    for one, other in zip(*results, strict=True):
        # The gradients sum over the keys in another order.
        size = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=0, atol=10 * size * CLOSE[torch.float64])
