"""A call of `context_parallel_attention` as numbers, for the cost model."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attention.distributed.schedule import Layout, Reach, attended, blocks, in_two

__all__ = [
    "BACKWARD",
    "FORWARD",
    "Direction",
    "Exchange",
    "Rates",
    "Workload",
    "attended_pairs",
    "exchanges",
    "own_parts",
]


@dataclass(frozen=True)
class Rates:
    """What one process computes, and what its link carries.

    forward, backward: FLOP/s in the operator, with a multiply-add as two.
    bandwidth: bytes per second into a process, and as many out of it at the same time.
    latency: seconds that a message takes besides.
    call: seconds that a call of the operator takes besides its FLOPs.
    """

    forward: float
    backward: float
    bandwidth: float
    latency: float
    call: float = 0.0


@dataclass(frozen=True)
class Direction:
    """One pass: the products of a block, as many over head_dim and over the width of a value."""

    over_head_dim: int
    over_value_dim: int


# Processes whose steps are kept: 100 MB.
MOST_KEPT = 2048

# Scores and output; in the backward scores again, dQ and dK, and dP and dV.
FORWARD, BACKWARD = Direction(1, 1), Direction(3, 2)


@dataclass(frozen=True)
class Workload:
    """A call: who has which rows, which keys a query attends, and the sizes of the tensors.

    heads: those of query, key and value.
    widths: head_dim, and the width of a value.
    element: bytes of an element of query, key and value.
    """

    layout: Layout
    reach: Reach = Reach()
    batch: int = 1
    heads: tuple[int, int, int] = (8, 8, 8)
    widths: tuple[int, int] = (64, 64)
    element: int = 4

    @property
    def computed(self) -> int:
        """Bytes of an element of what the kernels compute: float32, or float64 of float64."""
        return max(4, self.element)

    @property
    def query_width(self) -> int:
        """Elements of a row of queries, of one batch element."""
        return self.heads[0] * self.widths[0]

    @property
    def key_value_width(self) -> int:
        """Elements of a row of keys and values."""
        return self.heads[1] * self.widths[0] + self.heads[2] * self.widths[1]

    @property
    def out_width(self) -> int:
        """Elements of a row of the output."""
        return self.heads[0] * self.widths[1]

    @functools.cached_property
    def steps(self) -> list[Exchange]:
        """`exchanges`, for those who need them again."""
        return list(_exchanges(self))

    def flops(self, pairs: Tensor, direction: Direction) -> Tensor:
        """Of the products over pairs of a query and a key, of all heads."""
        width = direction.over_head_dim * self.widths[0] + direction.over_value_dim * self.widths[1]
        return pairs * (2.0 * self.batch * self.heads[0] * width)


class Exchange(NamedTuple):
    """Step t of the schedule, of all W processes: float64 [W] each, by the receiver of the keys.

    Process r computes with keys of process r - t (modulo W).
    """

    pairs: Tensor
    """Pairs of a query and a key that attend each other, of one head."""
    calls: Tensor
    """Blocks, each one call of the operator."""
    rows: Tensor
    """Rows of keys and values that arrive."""
    is_empty: bool = False
    """Whether all of them are 0."""


def _sum_of_clamped(largest: Tensor, count: Tensor, bound: Tensor) -> Tensor:
    """The sum of min(max(x, 0), bound) over the `count` numbers x = largest, largest - 1, …"""

    def of_positive(first: Tensor) -> Tensor:
        x = first.clamp(min=0.0)
        return x * (x + 1) / 2

    def to_infinity(first: Tensor) -> Tensor:
        return of_positive(first) - of_positive(first - count)

    return to_infinity(largest) - to_infinity(largest - bound)


def attended_pairs(first: Tensor, last: Tensor, begin: Tensor, end: Tensor, reach: Reach) -> Tensor:
    """How many pairs of queries first … last - 1 and keys begin … end - 1 attend each other.

    Args:
        first, last, begin, end: float64 of one shape, positions below 2**53.

    Returns:
        float64 of that shape: exact up to 2**53 pairs, then rounded.
    """
    queries, keys = (last - first).clamp(min=0.0), (end - begin).clamp(min=0.0)
    pairs = queries * keys
    if reach.right is not None:  # query q does not attend the keys after q + right
        pairs = pairs - _sum_of_clamped(end - 1 - reach.right - first, queries, keys)
    if reach.left is not None:  # nor those before q - left
        pairs = pairs - _sum_of_clamped(last - 1 - reach.left - begin, queries, keys)
    return pairs


def _chunk_ends(layout: Layout) -> tuple[Tensor, Tensor]:
    """int64 [C, W] begins and ends of the chunks, with empty ones for processes with fewer."""
    most = max(len(chunks) for chunks in layout.chunks)
    spans = [[*chunks, *[(0, 0)] * (most - len(chunks))] for chunks in layout.chunks]
    begin, end = torch.tensor(spans, dtype=torch.int64).permute(2, 1, 0)
    return begin, end


def exchanges(work: Workload) -> Iterator[Exchange]:
    """The W steps of `schedule.steps`, of all processes at once.

    1,024 processes have a million pairs, for which calls of Python would take half a minute.
    """
    return iter(work.steps) if work.layout.processes <= MOST_KEPT else _exchanges(work)


def _exchanges(work: Workload) -> Iterator[Exchange]:
    begins, ends = _chunk_ends(work.layout)
    query = (begins.unsqueeze(1), ends.unsqueeze(1))
    nothing = torch.zeros(work.layout.processes, dtype=torch.float64)
    for t in range(work.layout.processes):
        key = (begins.roll(t, 1).unsqueeze(0), ends.roll(t, 1).unsqueeze(0))
        # By chunk of the receiver, chunk of the owner, and receiver.
        found = torch.broadcast_tensors(
            *attended(query, key, work.reach, torch.minimum, torch.maximum)
        )
        exists = (found[2] < found[3]) & (query[0] < query[1])
        if not exists.any():
            yield Exchange(nothing, nothing, nothing, is_empty=True)
            continue
        first, last, begin, end = (torch.where(exists, x, 0).double() for x in found)
        pairs = attended_pairs(first, last, begin, end, work.reach)
        # Of each chunk of the owner, from the first to the last key that is attended.
        first_key = torch.where(exists, found[2], torch.iinfo(torch.int64).max).amin(0)
        last_key = torch.where(exists, found[3], 0).amax(0)
        rows = torch.where(exists.any(0), last_key - first_key, 0).sum(0)
        yield Exchange(pairs.sum((0, 1)), exists.sum((0, 1)).double(), rows.double())


def own_parts(work: Workload) -> list[tuple[Tensor, Tensor]]:
    """Pairs and calls of both parts of `schedule.in_two`, of all processes: float64 [W] each."""
    processes = work.layout.processes
    own = (blocks(work.layout, work.reach, process, process) for process in range(processes))
    found = []
    for part in zip(*(in_two(of_process, work.reach) for of_process in own), strict=True):
        rows = [(p, *block.query, *block.key) for p in range(processes) for block in part[p]]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
        process, first, last, begin, end = table.unbind(1)
        of_blocks = attended_pairs(first, last, begin, end, work.reach), torch.ones_like(process)
        pairs, calls = (
            torch.zeros(processes, dtype=torch.float64).index_add(0, process.long(), x)
            for x in of_blocks
        )
        found.append((pairs, calls))
    return found
