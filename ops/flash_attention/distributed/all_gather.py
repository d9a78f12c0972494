"""Every process first collects the keys and values that its queries attend: O(L) memory.

A row is computed by one call of the operator, as by one process, and so has its bits. The gradients
of keys and values go back to the processes that hold them, which add them in the order of the
processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flash_attention.distributed.call import Call, Gradients, Inputs, Needed, Result
from flash_attention.distributed.communication import GRADIENT_TAG
from flash_attention.distributed.packing import Packing, Piece
from flash_attention.distributed.parts import (
    Saved,
    backward_of_part,
    forward_of_whole_rows,
)
from flash_attention.distributed.schedule import Block, Span, covering

__all__ = ["AllGather"]


# The kernels take queries in tiles of equal numbers, which divide this on every instruction set,
# except for up to two tiles at the end.
TILES = 96
# They take keys in blocks that divide this, and twice as long for more than FEW_KEYS keys.
KEY_BLOCKS = 512
BLOCK_SIZE, FEW_KEYS = 64, 256


class _Block(NamedTuple):
    """What one call of the operator computes, beyond the rows of this process: whole tiles.

    The order of the sums in a row depends on the other rows of its tile. So that it is the one of a
    call with all rows, the operator is also given the positions around the chunk, with queries of
    zeros.
    """

    chunk: Span
    query: Span
    key: Span
    block_size: int

    @staticmethod
    def of(chunk: Span, call: Call) -> _Block:
        length = call.layout.length
        begin, end = chunk.begin // TILES * TILES, -(-chunk.end // TILES) * TILES
        if end > length - TILES:
            begin, end = max(0, begin - TILES), length
        query, whole = Span(begin, end), Span(0, length)
        keys = call.options.reach.keys(query, whole)
        key = Span(keys.begin // KEY_BLOCKS * KEY_BLOCKS, keys.end)
        longer = length > FEW_KEYS >= key.length
        return _Block(chunk, query, key, BLOCK_SIZE * (2 if longer else 1))


def _blocks(call: Call, process: int) -> list[_Block]:
    return [_Block.of(chunk, call) for chunk in call.layout.chunks[process] if chunk.length > 0]


def _messages(call: Call) -> tuple[list[tuple[Span, ...]], list[tuple[Span, ...]]]:
    """What this process sends to each, and what it receives from each."""
    layout, own = call.layout, call.process

    def message(receiver: int, owner: int) -> tuple[Span, ...]:
        if receiver == owner:
            return ()
        needed = [block.key for block in _blocks(call, receiver)]
        return covering(layout.chunks[owner], needed)

    everyone = range(layout.processes)
    return [message(other, own) for other in everyone], [message(own, other) for other in everyone]


def _collect(call: Call, packing: Packing, key: Tensor, value: Tensor) -> list[Piece]:
    """The keys and values that the queries of this process attend, in the order of positions."""
    sends, receives = _messages(call)
    arriving = [packing.empty(spans, key.dtype) for spans in receives]
    leaving = [packing.pack(key, value, call.layout, call.process, spans) for spans in sends]
    transfer = call.channel.start(enumerate(leaving), enumerate(arriving))
    pieces = call.own_pieces(key, value)
    for buffer, spans in zip(arriving, receives, strict=True):
        pieces += packing.pieces(buffer, spans)
    transfer.wait()
    return sorted(pieces, key=lambda piece: piece.span)


def _joined(pieces: list[Piece], span: Span) -> Piece:
    """The keys and values of a span that the pieces cover."""
    parts = [piece.of(span.overlap(piece.span)) for piece in _within(pieces, span)]
    if len(parts) == 1:
        return parts[0]
    key, value = (torch.cat(tensors, 2) for tensors in list(zip(*parts, strict=True))[1:])
    return Piece(span, key, value)


def _within(pieces: list[Piece], span: Span) -> list[Piece]:
    return [piece for piece in pieces if span.overlap(piece.span).length > 0]


class AllGather:
    """See the module."""

    def forward(self, call: Call, inputs: Inputs) -> Result:
        query, key, value, slopes, sinks = inputs
        pieces = _collect(call, Packing.of(key, value), key, value)
        outs, stats = [], []
        for block in _blocks(call, call.process):
            keys = _joined(pieces, block.key)
            local = query[:, :, call.layout.local(call.process, block.chunk)]
            before = block.chunk.begin - block.query.begin
            padding = (0, 0, before, block.query.end - block.chunk.end)
            out, row_stats = forward_of_whole_rows(
                torch.nn.functional.pad(local, padding),
                keys.key,
                keys.value,
                Block(block.query, block.key),
                call.options,
                slopes,
                sinks,
                block.block_size,
            )
            rows = slice(before, before + block.chunk.length)
            outs.append(out[:, :, rows])
            stats.append(row_stats[:, :, :, rows])
        if not outs:
            dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
            outs = [query.new_empty((*query.shape[:3], value.size(3)), dtype=dtype)]
            stats = [query.new_empty((2, *query.shape[:3]), dtype=dtype)]
        return Result(torch.cat(outs, 2), torch.cat(stats, 3), ())

    def backward(
        self, call: Call, inputs: Inputs, kept: tuple[Tensor, ...], saved: Saved, needed: Needed
    ) -> Gradients:
        query, key, value, slopes, _ = inputs
        dtype = saved.row_stats.dtype
        packing = Packing.of(key, value)
        pieces = _collect(call, packing, key, value)
        d_query = torch.zeros_like(query, dtype=dtype)
        d_slopes = None if slopes is None else torch.zeros_like(slopes)

        sends, receives = _messages(call)
        # The messages of the forward in the opposite direction.
        leaving = [packing.empty(spans, dtype).zero_() for spans in receives]
        arriving = [packing.empty(spans, dtype) for spans in sends]
        own = Piece(
            Span(0, 0),
            torch.zeros_like(key, dtype=dtype),
            torch.zeros_like(value, dtype=dtype),
        )
        gradients = call.own_pieces(own.key, own.value)
        for buffer, spans in zip(leaving, receives, strict=True):
            gradients += packing.pieces(buffer, spans)

        for block in _blocks(call, call.process):
            keys = _joined(pieces, block.key)
            local = call.layout.local(call.process, block.chunk)
            found = backward_of_part(
                query[:, :, local],
                keys.key,
                keys.value,
                Block(block.chunk, block.key),
                call.options,
                slopes,
                saved.of(local),
                needed,
            )
            if needed[0]:
                d_query[:, :, local] = found[0]
            for piece in _within(gradients, block.key):
                span = block.key.overlap(piece.span)
                rows = slice(span.begin - block.key.begin, span.end - block.key.begin)
                if needed[1]:
                    piece.of(span).key.add_(found[1][:, :, rows])
                if needed[2]:
                    piece.of(span).value.add_(found[2][:, :, rows])
            if needed[3] and d_slopes is not None:
                d_slopes += found[3]

        if needed[1] or needed[2]:
            call.channel.start(enumerate(leaving), enumerate(arriving), GRADIENT_TAG).wait()
            for buffer, spans in zip(arriving, sends, strict=True):
                for piece in packing.pieces(buffer, spans):
                    rows = call.layout.local(call.process, piece.span)
                    own.key[:, :, rows] += piece.key
                    own.value[:, :, rows] += piece.value
        return Gradients(d_query, own.key, own.value, d_slopes)
