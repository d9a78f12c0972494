"""Keys and values of some spans as one message, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attention.distributed.schedule import Layout, Span

__all__ = ["Packing", "Piece"]


class Piece(NamedTuple):
    """Keys [B, Hk, n, D] and values [B, Hv, n, Dv] of a span of n positions, or their gradients."""

    span: Span
    key: Tensor
    value: Tensor

    def of(self, span: Span) -> Piece:
        """The part at the positions of `span`, which lies in that of this piece: views."""
        rows = slice(span.begin - self.span.begin, span.end - self.span.begin)
        return Piece(span, self.key[:, :, rows], self.value[:, :, rows])


@dataclass(frozen=True)
class Packing:
    """The sizes of keys and values."""

    batch: int
    key_heads: int
    value_heads: int
    head_dim: int
    value_dim: int

    @staticmethod
    def of(key: Tensor, value: Tensor) -> Packing:
        return Packing(key.size(0), key.size(1), value.size(1), key.size(3), value.size(3))

    def empty(self, spans: Sequence[Span], dtype: torch.dtype) -> Tensor:
        """The memory of a message."""
        width = self.key_heads * self.head_dim + self.value_heads * self.value_dim
        rows = sum(span.length for span in spans)
        return torch.empty(self.batch * rows * width, dtype=dtype)

    def pieces(self, message: Tensor, spans: Sequence[Span]) -> list[Piece]:
        """Views of the parts of a message."""
        sizes = []
        for span in spans:
            sizes.append(self.batch * self.key_heads * span.length * self.head_dim)
            sizes.append(self.batch * self.value_heads * span.length * self.value_dim)
        flat = message.split(sizes) if sizes else ()
        return [
            Piece(
                span,
                key.view(self.batch, self.key_heads, span.length, self.head_dim),
                value.view(self.batch, self.value_heads, span.length, self.value_dim),
            )
            for span, key, value in zip(spans, flat[::2], flat[1::2], strict=True)
        ]

    def pack(
        self, key: Tensor, value: Tensor, layout: Layout, process: int, spans: Sequence[Span]
    ) -> Tensor:
        """The message with `spans` of the keys and values that `process` holds."""
        message = self.empty(spans, key.dtype)
        for piece in self.pieces(message, spans):
            rows = layout.local(process, piece.span)
            piece.key.copy_(key[:, :, rows])
            piece.value.copy_(value[:, :, rows])
        return message
