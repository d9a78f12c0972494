"""Inputs that every process can make for itself, any part of them: standard normal rows."""

from __future__ import annotations

import torch
from flash_attention.distributed.schedule import Span
from torch import Tensor

from bench.distributed.points import Point

NAMES = ("query", "key", "value", "grad_out")
# Rows that are drawn together.
BLOCK = 4096


def _block(name: str, point: Point, index: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(NAMES) * index + NAMES.index(name))
    shape = (point.batch, point.heads, BLOCK, point.head_dim)
    return torch.randn(shape, generator=generator)


def rows(name: str, point: Point, span: Span) -> Tensor:
    """Float32 [B, H, n, D], the n positions of `span` of one of NAMES."""
    parts = []
    for index in range(span.begin // BLOCK, -(-span.end // BLOCK)):
        first = index * BLOCK
        part = span.overlap(Span(first, first + BLOCK))
        parts.append(_block(name, point, index)[:, :, part.begin - first : part.end - first])
    if not parts:
        return torch.empty(point.batch, point.heads, 0, point.head_dim)
    return torch.cat(parts, 2)


def chunks(name: str, point: Point, spans: tuple[Span, ...]) -> Tensor:
    """The rows of several spans, one after the other."""
    return torch.cat([rows(name, point, span) for span in spans], 2)
