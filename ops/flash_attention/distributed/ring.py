"""Keys and values travel while those that have arrived are computed: O(L/W) memory.

See `schedule` for who sends what when. The backward sends the same keys and values once more, and
their gradients back to the process that holds them, which adds them in the order of the steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flash_attention.distributed.call import (
    Call,
    Gradients,
    Inputs,
    Needed,
    Result,
    piece_with,
)
from flash_attention.distributed.communication import GRADIENT_TAG, Transfer
from flash_attention.distributed.packing import Packing, Piece
from flash_attention.distributed.parts import Rows, Saved, backward_of_part, forward_of_part
from flash_attention.distributed.schedule import Step, steps

__all__ = ["Ring"]


class _KeysAndValues:
    """Those of the current step, and those of the next on their way."""

    def __init__(self, call: Call, key: Tensor, value: Tensor) -> None:
        self._call = call
        self._key, self._value = key, value
        self.packing = Packing.of(key, value)

    def start(self, step: Step) -> tuple[Transfer, list[Piece]]:
        """Starts the messages of a step, and says where its keys and values will be."""
        call, packing = self._call, self.packing
        if step.source == call.process:
            return Transfer([]), call.own_pieces(self._key, self._value)
        arriving = packing.empty(step.receives, self._key.dtype)
        leaving = packing.pack(self._key, self._value, call.layout, call.process, step.sends)
        transfer = call.channel.start([(step.target, leaving)], [(step.source, arriving)])
        return transfer, packing.pieces(arriving, step.receives)


class _GradientsOfKeys:
    """The gradients of the keys and values of this process, to which others contribute."""

    def __init__(
        self, call: Call, packing: Packing, key: Tensor, value: Tensor, dtype: torch.dtype
    ) -> None:
        self._call, self._packing = call, packing
        self.key = torch.zeros_like(key, dtype=dtype)
        self.value = torch.zeros_like(value, dtype=dtype)
        self._transfer: Transfer | None = None
        self._arriving: list[Piece] = []

    def exchange(self, step: Step, leaving: Tensor) -> None:
        """Starts to send the gradients of a step to the process that holds its keys."""
        self.finish()
        arriving = self._packing.empty(step.sends, self.key.dtype)
        self._arriving = self._packing.pieces(arriving, step.sends)
        self._transfer = self._call.channel.start(
            [(step.source, leaving)], [(step.target, arriving)], GRADIENT_TAG
        )

    def finish(self) -> None:
        """Adds what has been sent to this process."""
        if self._transfer is None:
            return
        self._transfer.wait()
        self._transfer = None
        self.add(self._arriving)

    def add(self, pieces: list[Piece]) -> None:
        """Adds gradients of positions that this process holds."""
        for piece in pieces:
            rows = self._call.layout.local(self._call.process, piece.span)
            self.key[:, :, rows] += piece.key
            self.value[:, :, rows] += piece.value


class Ring:
    """See the module."""

    def forward(self, call: Call, inputs: Inputs) -> Result:
        query, key, value, slopes, sinks = inputs
        rows = Rows(query, value, sinks)
        source = _KeysAndValues(call, key, value)
        for step, pieces in _prefetched(call, source):
            for block in step.blocks:
                local = call.layout.local(call.process, block.query)
                of_block = piece_with(pieces, block)
                part = forward_of_part(
                    query[:, :, local], of_block.key, of_block.value, block, call.options, slopes
                )
                rows.add(local, *part)
        return Result(*rows.finish(), ())

    def backward(
        self, call: Call, inputs: Inputs, kept: tuple[Tensor, ...], saved: Saved, needed: Needed
    ) -> Gradients:
        query, key, value, slopes, _ = inputs
        dtype = saved.row_stats.dtype
        source = _KeysAndValues(call, key, value)
        d_query = torch.zeros_like(query, dtype=dtype)
        d_slopes = None if slopes is None else torch.zeros_like(slopes)
        of_keys = _GradientsOfKeys(call, source.packing, key, value, dtype)
        for step, pieces in _prefetched(call, source):
            own = step.source == call.process
            spans = call.layout.chunks[call.process] if own else step.receives
            leaving = source.packing.empty(spans, dtype).zero_()
            gradients = source.packing.pieces(leaving, spans)
            for block in step.blocks:
                local = call.layout.local(call.process, block.query)
                of_block = piece_with(pieces, block)
                found = backward_of_part(
                    query[:, :, local],
                    of_block.key,
                    of_block.value,
                    block,
                    call.options,
                    slopes,
                    saved.of(local),
                    needed,
                )
                to = piece_with(gradients, block)
                if needed[0]:
                    d_query[:, :, local] += found[0]
                if needed[1]:
                    to.key.add_(found[1])
                if needed[2]:
                    to.value.add_(found[2])
                if needed[3] and d_slopes is not None:
                    d_slopes += found[3]
            if own:
                of_keys.add(gradients)
            elif needed[1] or needed[2]:
                of_keys.exchange(step, leaving)
        of_keys.finish()
        return Gradients(d_query, of_keys.key, of_keys.value, d_slopes)


def _prefetched(call: Call, source: _KeysAndValues) -> Iterator[tuple[Step, list[Piece]]]:
    """Yields each step with its keys and values, while those of the next step travel."""
    pending = [
        step
        for step in steps(call.layout, call.options.reach, call.process)
        if step.blocks or step.sends
    ]
    if not pending:
        return
    following = source.start(pending[0])
    for index, step in enumerate(pending):
        transfer, pieces = following
        transfer.wait()
        if index + 1 < len(pending):
            following = source.start(pending[index + 1])
        yield step, pieces
