"""Which process holds which rows, and which keys it sends to whom: pure functions of the sizes.

Positions are those of the whole sequence. A process holds one chunk of rows, or with "zigzag" two.
In step t of W, process r receives keys of process r - t and sends keys to process r + t (modulo W),
so that every process sends and receives one message at a time, and each pair of processes meets
once. Only the keys that a query of the receiver may attend are sent; without any there is no
message.

Sources: Liu et al., Ring attention with blockwise transformers for near-infinite context
(arXiv:2310.01889), section 3; Brandon et al., Striped attention (arXiv:2311.09431), for the balance
of causal work, which "zigzag" achieves with two chunks per process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "Block",
    "Layout",
    "Reach",
    "Span",
    "Step",
    "blocks",
    "contiguous",
    "in_two",
    "steps",
    "zigzag",
]


class Span(NamedTuple):
    """Positions begin … end - 1; empty if end <= begin."""

    begin: int
    end: int

    @property
    def length(self) -> int:
        return max(0, self.end - self.begin)

    def overlap(self, other: Span) -> Span:
        return Span(max(self.begin, other.begin), min(self.end, other.end))


@dataclass(frozen=True)
class Layout:
    """chunks[r]: the spans that process r holds, in the order of its rows."""

    chunks: tuple[tuple[Span, ...], ...]

    @property
    def processes(self) -> int:
        return len(self.chunks)

    @property
    def length(self) -> int:
        return sum(map(self.rows, range(self.processes)))

    def rows(self, process: int) -> int:
        """The number of rows of a process."""
        return sum(chunk.length for chunk in self.chunks[process])

    def local(self, process: int, span: Span) -> slice:
        """The rows of `process` at the positions of `span`, which lies in one of its chunks."""
        first = 0
        for chunk in self.chunks[process]:
            if chunk.begin <= span.begin and span.end <= chunk.end:
                begin = first + span.begin - chunk.begin
                return slice(begin, begin + span.length)
            first += chunk.length
        raise ValueError(
            f"flash_attention.distributed: expected a span of process {process}, which holds "
            f"{self.chunks[process]}, got {span}"
        )


def contiguous(lengths: Sequence[int]) -> Layout:
    """Process r holds the next lengths[r] rows."""
    chunks, begin = [], 0
    for length in lengths:
        chunks.append((Span(begin, begin + length),))
        begin += length
    return Layout(tuple(chunks))


def even_lengths(length: int, parts: int) -> list[int]:
    """`length` in `parts` that differ by at most 1, the longer ones first."""
    return [length // parts + (part < length % parts) for part in range(parts)]


def zigzag(length: int, processes: int) -> Layout:
    """Process r of W holds chunks r and 2 W - 1 - r of 2 W: an early and a late one.

    With a causal mask the later queries attend more keys, and so every process has as many pairs.
    """
    cut = [chunks[0] for chunks in contiguous(even_lengths(length, 2 * processes)).chunks]
    return Layout(tuple((cut[r], cut[-1 - r]) for r in range(processes)))


@dataclass(frozen=True)
class Reach:
    """A query at position p may attend keys p - left … p + right; None: no bound."""

    left: int | None = None
    right: int | None = None

    def keys(self, queries: Span, among: Span) -> Span:
        """The keys of `among` that a query of `queries` may attend."""
        if queries.length == 0:
            return Span(among.begin, among.begin)
        begin = among.begin if self.left is None else queries.begin - self.left
        end = among.end if self.right is None else queries.end + self.right
        return among.overlap(Span(begin, end))


class Block(NamedTuple):
    """Queries of one process and keys of one process, contiguous each."""

    query: Span
    key: Span


def attended(
    query: tuple[Any, Any],
    key: tuple[Any, Any],
    reach: Reach,
    least: Callable[[Any, Any], Any] = min,
    most: Callable[[Any, Any], Any] = max,
) -> tuple[Any, Any, Any, Any]:
    """first, last, begin, end: the queries that attend a key, and the keys that a query attends.

    Of numbers, or with `least` and `most` of tensors, of many pairs of chunks at once. There are no
    such queries and keys if end <= begin, or if the chunk of queries is empty.
    """
    (query_begin, query_end), (key_begin, key_end) = query, key
    left, right = reach.left, reach.right
    begin = key_begin if left is None else most(key_begin, query_begin - left)
    end = key_end if right is None else least(key_end, query_end + right)
    first = query_begin if right is None else most(query_begin, begin - right)
    last = query_end if left is None else least(query_end, end + left)
    return first, last, begin, end


def blocks(layout: Layout, reach: Reach, receiver: int, owner: int) -> list[Block]:
    """The pairs of `receiver`'s queries and `owner`'s keys that are attended, by pair of chunks.

    Of the chunks, a block has the queries that attend a key, and the keys that a query attends.
    """
    # Numbers and not spans: there are W^2 pairs of processes.
    found = []
    for query in layout.chunks[receiver]:
        if query[0] >= query[1]:
            continue
        for key in layout.chunks[owner]:
            first, last, begin, end = attended(query, key, reach)
            if begin < end:
                found.append(Block(Span(first, last), Span(begin, end)))
    return found


def covering(chunks: Iterable[Span], needed: Sequence[Span]) -> tuple[Span, ...]:
    """The part of each chunk from the first to the last position that is needed, if any is."""
    spans = []
    for chunk in chunks:
        parts = [part for span in needed if (part := chunk.overlap(span)).length > 0]
        if parts:
            spans.append(Span(min(s.begin for s in parts), max(s.end for s in parts)))
    return tuple(spans)


def message(layout: Layout, reach: Reach, receiver: int, owner: int) -> tuple[Span, ...]:
    """The keys that `owner` sends to `receiver`: at most one span of each of its chunks."""
    return _message_of(blocks(layout, reach, receiver, owner), layout, owner)


def _message_of(found: list[Block], layout: Layout, owner: int) -> tuple[Span, ...]:
    return covering(layout.chunks[owner], [block.key for block in found]) if found else ()


class Step(NamedTuple):
    """What one process does in one step: a message in, a message out, and the blocks it computes.

    The message that comes in has the keys of the blocks of the same step. The backward computes the
    same blocks, and sends gradients in the opposite directions.
    """

    source: int
    receives: tuple[Span, ...]
    target: int
    sends: tuple[Span, ...]
    blocks: tuple[Block, ...]


def steps(layout: Layout, reach: Reach, process: int) -> Iterator[Step]:
    """The W steps of `process`; in the first, it computes its own keys and has no messages."""
    yield Step(process, (), process, (), tuple(blocks(layout, reach, process, process)))
    for t in range(1, layout.processes):
        source, target = (process - t) % layout.processes, (process + t) % layout.processes
        found = blocks(layout, reach, process, source)
        receives = _message_of(found, layout, source)
        yield Step(source, receives, target, message(layout, reach, target, process), tuple(found))


def in_two(own: Sequence[Block], reach: Reach) -> tuple[list[Block], list[Block]]:
    """The blocks of the first step, in an early and a late part: the last is cut in the middle.

    The backward computes the late part after the last step, while gradients travel.
    """
    if not own:
        return [], []
    *early, (query, key) = own
    middle = query.begin + query.length // 2
    first, second = Span(query.begin, middle), Span(middle, query.end)
    if first.length > 0:
        early.append(Block(first, reach.keys(first, key)))
    return early, [Block(second, reach.keys(second, key))]
