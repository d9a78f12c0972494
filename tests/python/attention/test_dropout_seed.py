"""The dropout seed: every bit of it counts, and every pass regenerates the same mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.tolerances import CLOSE, SECOND_FLOAT64_RELATIVE

OPTIONS: dict[str, Any] = dict.fromkeys(("bias", "query_positions", "window", "alibi_slopes"))
OPTIONS |= {"sinks": None, "scale": None, "causal": False, "softcap": 0.0}
OPTIONS |= {"block_size": 64, "use_simd": True}


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gradient_of_value(seed: int, inputs: list[Tensor], forward: list[Tensor]) -> Tensor:
    """dV for this seed, which depends on the dropout mask."""
    return torch.ops.flash._backward(
        torch.ones_like(forward[0]), None, *inputs, *forward, torch.tensor([seed]),
        **OPTIONS, dropout=0.5, needed=[False, False, True, False, False, False],
    )[2]  # fmt: skip


def test_mask_depends_on_every_bit_of_the_seed() -> None:
    inputs = [random(1, 2, n, 4) for n in (6, 40, 40)]
    forward = list(torch.ops.flash._forward(*inputs, **OPTIONS, dropout=0.5)[:2])
    seeds = [0, *(2**bit for bit in range(63)), -(2**63)]
    found = {tuple(gradient_of_value(seed, inputs, forward).flatten().tolist()) for seed in seeds}
    assert len(found) == 65


def test_forward_and_backward_use_the_mask_of_dropout_mask() -> None:
    inputs = [random(2, 3, n, 4) for n in (6, 40, 40)]
    torch.manual_seed(11)
    mask = flash_attention.dropout_mask(2, 3, 6, 40, 0.5)
    torch.manual_seed(11)
    out, row_stats, seed = torch.ops.flash._forward(*inputs, **OPTIONS, dropout=0.5)
    weights = torch.softmax(inputs[0] @ inputs[1].mT / 2, -1) * mask / 0.5
    torch.testing.assert_close(out, weights @ inputs[2], rtol=0, atol=CLOSE[torch.float64])
    found = gradient_of_value(seed.item(), inputs, [out, row_stats])
    expected = weights.mT @ torch.ones_like(out)
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE[torch.float64])


def test_packed_sequences_use_consecutive_seeds() -> None:
    """Sequence n uses the mask of seed + n, forward and backward."""
    lengths, keys = (4, 0, 7), (9, 3, 30)
    starts = [torch.tensor([0, *n]).cumsum(0) for n in (lengths, keys)]
    leaves = [random(sum(n), 2, 4).requires_grad_() for n in (lengths, keys, keys)]
    torch.manual_seed(2)
    out = flash_attention.varlen_attention(*leaves, *starts, dropout=0.5)
    (found,) = torch.autograd.grad(out.sum(), leaves[2])
    torch.manual_seed(2)
    seed = torch.ops.flash._varlen_forward(*(x.detach() for x in leaves), *starts, dropout=0.5)[
        2
    ].item()
    parts = zip(leaves[0].split(lengths), leaves[1].split(keys), leaves[2].split(keys), strict=True)
    for n, rows in enumerate(parts):
        inputs = [x.detach().transpose(0, 1)[None] for x in rows]
        forward = list(torch.ops.flash._forward(*inputs, **OPTIONS, dropout=0.0)[:2])
        expected = gradient_of_value(seed + n, inputs, forward)
        one = found.split(keys)[n].transpose(0, 1)[None]
        torch.testing.assert_close(one, expected, rtol=0, atol=CLOSE[torch.float64])


@pytest.mark.parametrize("queries", [5, 150])
def test_second_derivatives_use_the_same_mask(queries: int) -> None:
    """They process blocks of rows; the mask of a row is that of its position in the whole."""
    shapes = ((2, 2, queries, 4), (2, 2, 33, 4), (2, 2, 33, 3))

    def slopes(operator: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [random(*s).requires_grad_() for s in shapes]
        torch.manual_seed(4)
        out = operator(*leaves, dropout=0.4)
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.sin().sum() for g in first), leaves))

    found, expected = (
        slopes(f) for f in (flash_attention.attention, flash_attention.standard_attention)
    )
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=SECOND_FLOAT64_RELATIVE * largest)


def test_forward_mode_uses_the_same_mask() -> None:
    query, key, value = (random(1, 2, 150, 4), random(1, 2, 33, 4), random(1, 2, 33, 3))

    def tangent(operator: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(4)
        return torch.func.jvp(lambda q: operator(q, key, value, dropout=0.4), (query,), (query,))

    found, expected = (
        tangent(f) for f in (flash_attention.attention, flash_attention.standard_attention)
    )
    # The tangents have values of order 10.
    torch.testing.assert_close(found, expected, rtol=0, atol=10 * CLOSE[torch.float64])
