"""What the methods of context parallelism have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from flash_attention.distributed.communication import Channel
from flash_attention.distributed.packing import Piece
from flash_attention.distributed.parts import Options, Saved
from flash_attention.distributed.schedule import Block, Layout

__all__ = ["Call", "Gradients", "Inputs", "Method", "Needed", "Result", "piece_with"]

Needed = tuple[bool, bool, bool, bool]
"""Whether the gradients of query, key, value and slopes are needed."""


@dataclass(frozen=True)
class Call:
    """One call, on this process."""

    channel: Channel
    layout: Layout
    options: Options

    @property
    def process(self) -> int:
        return self.channel.rank

    def own_pieces(self, key: Tensor, value: Tensor) -> list[Piece]:
        """The keys and values of this process, by chunk: views."""
        return [
            Piece(chunk, key[:, :, rows], value[:, :, rows])
            for chunk in self.layout.chunks[self.process]
            for rows in (self.layout.local(self.process, chunk),)
        ]


class Inputs(NamedTuple):
    """The tensors that a call is differentiable in; query, key and value have the local rows."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: Tensor | None
    sinks: Tensor | None


class Result(NamedTuple):
    """The local rows, in the dtype that the kernels compute in, and what the backward takes."""

    out: Tensor
    row_stats: Tensor
    kept: tuple[Tensor, ...]


class Gradients(NamedTuple):
    """Of the local rows, and the terms of the gradient of slopes that this process has."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    slopes: Tensor | None


class Method(Protocol):
    """A way to bring queries and keys together."""

    def forward(self, call: Call, inputs: Inputs) -> Result: ...

    def backward(
        self, call: Call, inputs: Inputs, kept: tuple[Tensor, ...], saved: Saved, needed: Needed
    ) -> Gradients: ...


def piece_with(pieces: list[Piece], block: Block) -> Piece:
    """The keys and values of a block, from the piece that contains them."""
    for piece in pieces:
        if piece.span.overlap(block.key) == block.key:
            return piece.of(block.key)
    raise ValueError(
        f"flash_attention.distributed: expected keys {block.key}, got {[p.span for p in pieces]}"
    )
