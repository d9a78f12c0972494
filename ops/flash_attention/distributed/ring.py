"""Keys and values travel while those that have arrived are computed: O(L/W) memory.

See `schedule` for who sends what when. The backward sends the same keys and values once more, and
their gradients back to the process that holds them, which adds them in the order of the steps. It
leaves a part of its own keys for the end, so that the last gradients travel meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from flash_attention.distributed.schedule import Block, Step, in_two, steps

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

    @property
    def pieces(self) -> list[Piece]:
        """By chunk: views."""
        return self._call.own_pieces(self.key, self.value)

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
        for piece in self._arriving:
            rows = self._call.layout.local(self._call.process, piece.span)
            self.key[:, :, rows] += piece.key
            self.value[:, :, rows] += piece.value


class _Backward:
    """The gradients of a call, to which blocks are added."""

    def __init__(self, call: Call, inputs: Inputs, saved: Saved, needed: Needed) -> None:
        self._call, self._saved, self._needed = call, saved, needed
        self._query, self._slopes = inputs.query, inputs.slopes
        self.query = torch.zeros_like(inputs.query, dtype=saved.row_stats.dtype)
        self.slopes = None if inputs.slopes is None else torch.zeros_like(inputs.slopes)

    def add(self, blocks: Sequence[Block], pieces: list[Piece], gradients: list[Piece]) -> None:
        """Adds blocks of `pieces`, and to `gradients` those of their keys and values."""
        for block in blocks:
            local = self._call.layout.local(self._call.process, block.query)
            of_block = piece_with(pieces, block)
            d_query, d_key, d_value, d_slopes = backward_of_part(
                self._query[:, :, local],
                of_block.key,
                of_block.value,
                block,
                self._call.options,
                self._slopes,
                self._saved.of(local),
                self._needed,
            )
            to = piece_with(gradients, block)
            if self._needed[0]:
                self.query[:, :, local] += d_query
            if self._needed[1]:
                to.key.add_(d_key)
            if self._needed[2]:
                to.value.add_(d_value)
            if self._needed[3] and self.slopes is not None:
                self.slopes += d_slopes


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
        source = _KeysAndValues(call, inputs.key, inputs.value)
        own = call.own_pieces(inputs.key, inputs.value)
        dtype = saved.row_stats.dtype
        of_keys = _GradientsOfKeys(call, source.packing, inputs.key, inputs.value, dtype)
        found = _Backward(call, inputs, saved, needed)
        late: list[Block] = []
        for step, pieces in _prefetched(call, source):
            if step.source == call.process:
                early, late = in_two(step.blocks, call.options.reach)
                found.add(early, own, of_keys.pieces)
                continue
            leaving = source.packing.empty(step.receives, dtype).zero_()
            found.add(step.blocks, pieces, source.packing.pieces(leaving, step.receives))
            if needed[1] or needed[2]:
                of_keys.exchange(step, leaving)
        found.add(late, own, of_keys.pieces)  # while the last gradients travel
        of_keys.finish()
        return Gradients(found.query, of_keys.key, of_keys.value, found.slopes)


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
