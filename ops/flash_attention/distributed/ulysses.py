"""Every process exchanges its rows of all heads for all rows of some heads, and back: O(L) memory.

Each head is computed by one call of the operator, as by one process. Heads that share keys or
values stay together, so that there must be as many such groups as processes.

Source: Jacobs et al., DeepSpeed Ulysses (arXiv:2309.14509), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flash_attention.distributed.call import Call, Gradients, Inputs, Needed, Result
from flash_attention.distributed.parts import (
    Options,
    Saved,
    backward_of_part,
    forward_of_whole_rows,
)
from flash_attention.distributed.schedule import Block, Span, even_lengths

__all__ = ["Ulysses", "head_groups"]


def head_groups(key_heads: int, value_heads: int) -> int:
    """The number of groups of heads that share neither keys nor values."""
    return math.gcd(key_heads, value_heads)


class _Heads:
    """The groups of heads of each process."""

    def __init__(self, call: Call, inputs: Inputs) -> None:
        self._call = call
        self._groups = head_groups(inputs.key.size(1), inputs.value.size(1))
        counts = even_lengths(self._groups, call.layout.processes)
        ends = [sum(counts[: process + 1]) for process in range(len(counts))]
        self._ranges = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]

    def of(self, process: int, heads: int) -> slice:
        """The heads of a process, of a tensor with so many."""
        each = heads // self._groups
        groups = self._ranges[process]
        return slice(groups.start * each, groups.stop * each)

    def own(self, heads: int) -> slice:
        return self.of(self._call.process, heads)

    def options(self, heads: int) -> Options:
        return replace(self._call.options, first_head=self.own(heads).start)

    def to_heads(self, *tensors: Tensor) -> list[Tensor]:
        """[B, own heads, L, n] from [B, heads, own rows, n] of every process."""
        layout = self._call.layout
        everyone = range(layout.processes)
        leaving = [[x[:, self.of(p, x.size(1))] for x in tensors] for p in everyone]
        own = leaving[self._call.process]
        shapes = [[(*x.shape[:2], layout.rows(p), x.size(3)) for x in own] for p in everyone]
        arrived = self._exchange(leaving, shapes)
        results = [x.new_empty((*x.shape[:2], layout.length, x.size(3))) for x in own]
        for chunks, from_process in zip(layout.chunks, arrived, strict=True):
            for result, rows in zip(results, from_process, strict=True):
                for chunk, part in zip(
                    chunks, rows.split([chunk.length for chunk in chunks], 2), strict=True
                ):
                    result[:, :, chunk.begin : chunk.end] = part
        return results

    def to_rows(self, heads: Sequence[int], *tensors: Tensor) -> list[Tensor]:
        """[B, heads[i], own rows, n] from [B, own heads, L, n] of every process."""
        layout = self._call.layout
        everyone = range(layout.processes)
        leaving = [
            [torch.cat([x[:, :, c.begin : c.end] for c in layout.chunks[p]], 2) for x in tensors]
            for p in everyone
        ]
        shapes = [
            [
                (x.size(0), len(range(count)[self.of(p, count)]), *y.shape[2:])
                for x, y, count in zip(tensors, leaving[self._call.process], heads, strict=True)
            ]
            for p in everyone
        ]
        arrived = self._exchange(leaving, shapes)
        return [torch.cat(parts, 1) for parts in zip(*arrived, strict=True)]

    def _exchange(
        self, leaving: list[list[Tensor]], shapes: list[list[tuple[int, ...]]]
    ) -> list[list[Tensor]]:
        """The tensors of `shapes[p]` from each process p, to which `leaving[p]` go."""
        own = self._call.process
        sends, receives = [], []
        arrived = []
        for process, (tensors, expected) in enumerate(zip(leaving, shapes, strict=True)):
            if process == own:
                arrived.append(tensors)
                continue
            sends.append((process, torch.cat([x.reshape(-1) for x in tensors])))
            sizes = [math.prod(shape) for shape in expected]
            message = tensors[0].new_empty(sum(sizes))
            receives.append((process, message))
            parts = zip(message.split(sizes), expected, strict=True)
            arrived.append([part.view(shape) for part, shape in parts])
        self._call.channel.start(sends, receives).wait()
        return arrived


def _per_head(x: Tensor | None, heads: slice) -> Tensor | None:
    """Slopes or sinks of some heads, of [H] or [B, H]."""
    return None if x is None else x[..., heads].contiguous()


class Ulysses:
    """See the module."""

    def forward(self, call: Call, inputs: Inputs) -> Result:
        heads = _Heads(call, inputs)
        count = inputs.query.size(1)
        own = heads.own(count)
        query, key, value = heads.to_heads(inputs.query, inputs.key, inputs.value)
        out, row_stats = forward_of_whole_rows(
            query,
            key,
            value,
            _whole(call),
            heads.options(count),
            _per_head(inputs.slopes, own),
            _per_head(inputs.sinks, own),
        )
        row_max, row_sum = row_stats.unsqueeze(-1)
        rows = heads.to_rows([count] * 3, out, row_max, row_sum)
        own_stats = torch.stack(rows[1:]).squeeze(-1)
        return Result(rows[0], own_stats, (query, key, value, out, row_stats))

    def backward(
        self, call: Call, inputs: Inputs, kept: tuple[Tensor, ...], saved: Saved, needed: Needed
    ) -> Gradients:
        query, key, value, out, row_stats = kept
        heads = _Heads(call, inputs)
        counts = [x.size(1) for x in inputs[:3]]
        own = heads.own(counts[0])
        # Also if the loss of this process does not depend on lse: that of another may.
        of_lse = saved.grad_lse
        if of_lse is None:
            of_lse = torch.zeros_like(saved.row_stats[0])
        grad_out, grad_lse = heads.to_heads(saved.grad_out.to(out.dtype), of_lse.unsqueeze(-1))
        of_heads = Saved(out, row_stats, grad_out, grad_lse.squeeze(-1))
        found = backward_of_part(
            query,
            key,
            value,
            _whole(call),
            heads.options(counts[0]),
            _per_head(inputs.slopes, own),
            of_heads,
            needed,
        )
        wanted = [i for i in range(3) if needed[i]]
        # They are whole sums, so nothing is lost if they travel in the dtype of the inputs.
        by_input: dict[int, Tensor] = {}
        if wanted:
            gradients = heads.to_rows(
                [counts[i] for i in wanted], *(found[i].to(query.dtype) for i in wanted)
            )
            by_input = dict(zip(wanted, gradients, strict=True))
        d_slopes = None
        if inputs.slopes is not None and needed[3]:
            d_slopes = torch.zeros_like(inputs.slopes)
            d_slopes[..., own] = found[3]
        return Gradients(by_input.get(0), by_input.get(1), by_input.get(2), d_slopes)


def _whole(call: Call) -> Block:
    whole = Span(0, call.layout.length)
    return Block(whole, whole)
