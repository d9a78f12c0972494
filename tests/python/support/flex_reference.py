"""flex_attention from its definition, with all scores at once, and calls to compare with it.

A score_mod or mask_mod of operations on scalars gives the same on tensors of indices that broadcast
to [B, H, L, S], so that the definition needs neither torch's vmap nor what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import flash_attention
import torch
from flash_attention.flex import attention as flex
from flash_attention.flex.kernels import KernelCall
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from support.problems import DTYPES_16BIT
from support.tolerances import CLOSE, TILE_SIZE_ROUNDED

BATCH, HEADS, KEY_HEADS, LENGTH, WIDTH = 2, 4, 2, 50, 6
# So small that there are several blocks, the last ones partly outside.
BLOCK_SIZE = 16

Mod = Callable[..., Tensor]


def block_mask(
    mask_mod: Mod, batch: int = BATCH, queries: int = LENGTH, keys: int = LENGTH
) -> BlockMask:
    return create_block_mask(
        mask_mod, batch, HEADS, queries, keys, device="cpu", BLOCK_SIZE=BLOCK_SIZE
    )


def inputs(
    queries: int = LENGTH,
    keys: int = LENGTH,
    dtype: torch.dtype = torch.float64,
    heads: int = HEADS,
    batch: int = BATCH,
) -> list[Tensor]:
    """query, key and value, which has a width of its own."""
    shapes = [(heads, queries, WIDTH), (KEY_HEADS, keys, WIDTH), (KEY_HEADS, keys, WIDTH + 1)]
    return [
        torch.randn(batch, *shape, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Mod | None = None,
    mask_mod: Mod | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """out and lse in float64; a row without a key has zeros and -inf."""
    query, key, value = (x.double() for x in (query, key, value))
    group = query.size(1) // key.size(1)
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.size(3)) if scale is None else scale)
    b, h, q, kv = torch.meshgrid(*(torch.arange(n) for n in scores.shape), indexing="ij")
    if score_mod is not None:
        scores = score_mod(scores, b, h, q, kv)
    if mask_mod is not None:
        scores = scores.masked_fill(~mask_mod(b, h, q, kv), -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)
    return weights @ value, lse


def with_gradients(results: Iterable[Tensor], leaves: list[Tensor]) -> list[Tensor | None]:
    """The results, and the gradients of a weighted sum of them; rows of lse of -inf have none."""
    results = list(results)
    terms = [
        (torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view(each.shape) * each)[
            each.isfinite()
        ].sum()
        for each in results
    ]
    return [*results, *torch.autograd.grad(sum(terms), leaves, allow_unused=True)]


def assert_close(
    found: list[Tensor | None], expected: list[Tensor | None], dtype: torch.dtype = torch.float64
) -> None:
    """Sums of up to 50 terms of order 1; gradients sum over queries and heads, hence the factor.

    16-bit results may have rounded weights as well, on matrix tiles.
    """
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:  # no gradient is one of zeros
            assert all(each is None or not each.any() for each in (one, other))
            continue
        largest = other.abs().nan_to_num(posinf=0.0).max().item()
        allowed = 5 * CLOSE[dtype] * max(10.0, largest)
        if dtype in DTYPES_16BIT:
            allowed = TILE_SIZE_ROUNDED * max(1.0, largest)
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=allowed)


@dataclass
class Paths:
    """How many calls each way to compute has had."""

    kernels: int = 0
    packed: int = 0
    blocks: int = 0

    @property
    def only(self) -> str:
        """The way that had all calls."""
        names = [name for name, count in vars(self).items() if count]
        assert len(names) == 1, names
        return names[0]


def watch(monkeypatch: Any) -> Paths:
    """Counts the calls until the end of the test."""
    paths = Paths()
    by_kernels, by_blocks = KernelCall.__call__, flex.attend_in_blocks

    def kernels(call: KernelCall, *arguments: Any) -> Any:
        if call.starts is None:
            paths.kernels += 1
        else:
            paths.packed += 1
        return by_kernels(call, *arguments)

    def blocks(*arguments: Any) -> Any:
        paths.blocks += 1
        return by_blocks(*arguments)

    monkeypatch.setattr(KernelCall, "__call__", kernels)
    monkeypatch.setattr(flex, "attend_in_blocks", blocks)
    return paths


def call(tensors: list[Tensor], *arguments: Any, **options: Any) -> Any:
    return flash_attention.flex_attention(*tensors, *arguments, enable_gqa=True, **options)
