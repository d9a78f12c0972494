"""Inputs of the measurements, and standard attention as a user writes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The lengths of the tables in docs/benchmarks.md.
GUIDE_LENGTHS = (128, 512, 1024, 2048, 4096)


def qkv(shape: tuple[int, ...], dtype: torch.dtype, grad: bool = False) -> tuple[Tensor, ...]:
    """Query, key and value, standard normal; the same for every caller of one shape and dtype."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad) for _ in range(3)
    )


def textbook(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard attention; `mask` [L, S] holds 0 and -inf and is made in advance."""
    scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ value


def causal_mask(length: int, dtype: torch.dtype) -> Tensor:
    """[length, length]: -inf above the diagonal."""
    return torch.full((length, length), -math.inf, dtype=dtype).triu(1)
