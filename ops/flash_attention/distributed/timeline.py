"""When each process would do what: the methods of context parallelism, step by step, on a clock.

The steps are those of `schedule`, and messages and computation overlap as in `ring`, `all_gather`
and `ulysses`. All quantities are float64 [W], one element per process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flash_attention.distributed.schedule import Span, even_lengths
from flash_attention.distributed.ulysses import head_groups
from flash_attention.distributed.workload import (
    BACKWARD,
    FORWARD,
    Direction,
    Exchange,
    Rates,
    Workload,
    attended_pairs,
    exchanges,
    own_parts,
)

__all__ = ["Timeline", "all_gather", "ring", "ulysses"]


@dataclass
class Timeline:
    """The clocks of all processes, and what they have spent so far."""

    work: Workload
    rates: Rates
    clock: Tensor = field(init=False)
    """Seconds since the call began."""
    computing: Tensor = field(init=False)
    """Seconds in the operator."""
    sent: Tensor = field(init=False)
    """Bytes."""

    def __post_init__(self) -> None:
        self.clock, self.computing, self.sent = torch.zeros(
            3, self.work.layout.processes, dtype=torch.float64
        ).unbind()

    @property
    def bytes_of_rows(self) -> float:
        """Of keys and values."""
        return float(self.work.batch * self.work.key_value_width * self.work.element)

    @property
    def bytes_of_gradients(self) -> float:
        """Of the gradients of a row of keys and values: terms of a sum, which are not rounded."""
        return float(self.work.batch * self.work.key_value_width * self.work.computed)

    def seconds(self, pairs: Tensor, calls: Tensor, direction: Direction) -> Tensor:
        """In the operator."""
        rate = self.rates.forward if direction is FORWARD else self.rates.backward
        return self.work.flops(pairs, direction) / rate + calls * self.rates.call

    def compute(self, seconds: Tensor) -> None:
        self.computing = self.computing + seconds
        self.clock = self.clock + seconds


class _Links:
    """The way out of each process and the way into it, which carry one message after the other."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._out, self._into = torch.zeros(2, len(timeline.clock), dtype=torch.float64).unbind()

    def send(self, posted: Tensor, amount: Tensor, shift: int) -> Tensor:
        """When each process is done with a step's messages, the one it gets and the one it sends.

        A message needs both processes: it starts when the later one has asked for it, and after
        the messages before it.

        Args:
            posted: when each process asks for its messages.
            amount: bytes that process r gets from process r - shift; 0: no message.

        Returns:
            The time, or 0 for a process without a message.
        """
        rates = self._timeline.rates
        begin = torch.stack((posted, posted.roll(shift), self._into, self._out.roll(shift))).amax(0)
        end = begin + amount / rates.bandwidth
        exists = amount > 0
        self._into = torch.where(exists, end, self._into)
        self._out = torch.where(exists, end, self._out.roll(shift)).roll(-shift)
        self._timeline.sent = self._timeline.sent + amount.roll(-shift)
        arrival = torch.where(exists, end + rates.latency, 0.0)
        return torch.maximum(arrival, arrival.roll(-shift))


def _with_next(steps: Iterator[Exchange]) -> Iterator[tuple[Exchange, Exchange | None]]:
    step = next(steps)
    for following in steps:
        yield step, following
        step = following
    yield step, None


def ring(timeline: Timeline, direction: Direction) -> None:
    """One pass of method="ring": `ring._prefetched`, and in the backward `_GradientsOfKeys`."""
    work = timeline.work
    links = _Links(timeline)
    # When each process began its last step: then it asked for the keys of the next.
    posted = timeline.clock
    arrived = torch.zeros_like(posted)
    gradients_done = torch.zeros_like(posted)
    gradient_ratio = timeline.bytes_of_gradients / timeline.bytes_of_rows
    received = sent = torch.zeros_like(posted)
    early, late = own_parts(work) if direction is BACKWARD else (None, None)
    for t, (step, following) in enumerate(_with_next(exchanges(work))):
        if step.is_empty and (following is None or following.is_empty):
            continue
        active = (step.calls > 0) | (sent > 0)
        started = torch.maximum(timeline.clock, arrived)
        timeline.clock = torch.where(active, started, timeline.clock)
        posted = torch.where(active, timeline.clock, posted)
        sent_now = sent
        if following is not None:
            received = following.rows * timeline.bytes_of_rows
            sent = received.roll(-(t + 1))
            arrived = links.send(posted, received, t + 1)
        computed = (step.pairs, step.calls) if early is None or t > 0 else early
        timeline.compute(timeline.seconds(*computed, direction))
        if direction is BACKWARD and t > 0:
            # The gradients of these keys go back; those of the step before have to be through.
            ready = torch.maximum(timeline.clock, gradients_done)
            timeline.clock = torch.where(active, ready, timeline.clock)
            done = links.send(timeline.clock, sent_now * gradient_ratio, -t)
            gradients_done = torch.where(active, done, gradients_done)
    if late is not None:
        timeline.compute(timeline.seconds(*late, direction))
    timeline.clock = torch.maximum(timeline.clock, gradients_done)


@dataclass(frozen=True)
class _Collected:
    """What "all_gather" moves: rows in and out of each process, and who sends to whom."""

    received: Tensor
    sent: Tensor
    pairs: Tensor
    calls: Tensor
    exists: dict[int, Tensor]
    """For each step t > 0 with messages: whether process r gets rows of process r - t."""

    @staticmethod
    def of(work: Workload) -> _Collected:
        received, sent, pairs = torch.zeros(3, work.layout.processes, dtype=torch.float64).unbind()
        exists: dict[int, Tensor] = {}
        for t, step in enumerate(exchanges(work)):
            if step.is_empty:
                continue
            pairs = pairs + step.pairs
            if t > 0:
                received = received + step.rows
                sent = sent + step.rows.roll(-t)
                exists[t] = step.rows > 0
        chunks = [sum(chunk.length > 0 for chunk in chunks) for chunks in work.layout.chunks]
        calls = torch.tensor(chunks, dtype=torch.float64)
        return _Collected(received, sent, pairs, calls, exists)

    def over_peers(self, values: Tensor) -> Tensor:
        """The largest value of a process and of all that it gets rows of or sends rows to."""
        largest = values
        for t, exists in self.exists.items():
            of_source = torch.where(exists, values.roll(t), values)
            of_target = torch.where(exists.roll(-t), values.roll(-t), values)
            largest = torch.stack((largest, of_source, of_target)).amax(0)
        return largest

    def move(self, timeline: Timeline, received: Tensor, sent: Tensor, row_bytes: float) -> None:
        """All messages at once: they share the links, and so end with the busiest of both."""
        begin = self.over_peers(timeline.clock)
        busy = self.over_peers(torch.maximum(received, sent)) * row_bytes
        arrived = begin + busy / timeline.rates.bandwidth + timeline.rates.latency
        timeline.clock = torch.where(received + sent > 0, arrived, timeline.clock)
        timeline.sent = timeline.sent + sent * row_bytes


def all_gather(timeline: Timeline, direction: Direction) -> None:
    """One pass of method="all_gather", without the rows that it adds to have whole tiles."""
    collected = _Collected.of(timeline.work)
    collected.move(timeline, collected.received, collected.sent, timeline.bytes_of_rows)
    timeline.compute(timeline.seconds(collected.pairs, collected.calls, direction))
    if direction is BACKWARD:
        collected.move(timeline, collected.sent, collected.received, timeline.bytes_of_gradients)


def ulysses(timeline: Timeline, direction: Direction) -> None:
    """One pass of method="ulysses".

    Raises:
        ValueError: fewer groups of heads than processes.
    """
    work = timeline.work
    processes, length = work.layout.processes, work.layout.length
    groups = head_groups(*work.heads[1:])
    if groups < processes:
        raise ValueError(
            f"ulysses: expected the heads of key and value, {work.heads[1]} and {work.heads[2]}, "
            f"to have a common divisor of at least the {processes} processes, got {groups}"
        )
    share = torch.tensor(even_lengths(groups, processes), dtype=torch.float64) / groups
    rows = torch.tensor([work.layout.rows(p) for p in range(processes)], dtype=torch.float64)

    def move(row_bytes: float, to_heads: bool) -> None:
        """All rows of a process's heads come, and its rows of the other heads go, or back."""
        received, sent = (length - rows) * share, rows * (1 - share)
        if not to_heads:
            received, sent = sent, received
        if processes == 1:
            return
        busy = torch.maximum(received, sent).amax() * row_bytes
        timeline.clock = torch.full_like(
            timeline.clock,
            float(timeline.clock.amax() + busy / timeline.rates.bandwidth + timeline.rates.latency),
        )
        timeline.sent = timeline.sent + sent * row_bytes

    inputs = work.query_width + work.key_value_width
    # The output, not rounded yet, goes back with two statistics of each row.
    computed = work.computed * work.batch
    if direction is FORWARD:
        move(inputs * work.element * work.batch, True)
    else:  # the gradients of the output and of lse
        move((work.out_width + work.heads[0]) * computed, True)
    whole = Span(0, length)
    first, last, begin, end = (
        torch.tensor(float(x), dtype=torch.float64) for x in (*whole, *whole)
    )
    pairs = attended_pairs(first, last, begin, end, work.reach)
    timeline.compute(timeline.seconds(pairs * share, torch.ones_like(share), direction))
    if direction is FORWARD:
        move((work.out_width + 2 * work.heads[0]) * computed, False)
    else:
        move(inputs * work.element * work.batch, False)
