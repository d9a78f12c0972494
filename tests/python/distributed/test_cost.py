"""The cost model against the schedule, the code of the methods, and what they really send."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed as dist
from flash_attention.distributed import cost, timeline
from flash_attention.distributed.cost import Prediction, Rates, best, predict
from flash_attention.distributed.schedule import (
    Layout,
    Reach,
    Step,
    contiguous,
    in_two,
    steps,
    zigzag,
)
from flash_attention.distributed.timeline import Timeline
from flash_attention.distributed.workload import (
    BACKWARD,
    FORWARD,
    Workload,
    attended_pairs,
    exchanges,
    own_parts,
)

from support.layouts import LAYOUTS, REACHES, attends
from support.process_pool import ProcessPool

pytestmark = pytest.mark.once

# Powers of two, so that sums of times are exact.
RATES = Rates(forward=2.0**10, backward=2.0**9, bandwidth=2.0**6, latency=0.25, call=0.5)


def pairs_of(step: Step, reach: Reach) -> int:
    return sum(
        attends(reach, query, key)
        for block in step.blocks
        for query, key in itertools.product(range(*block.query), range(*block.key))
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_exchanges_are_the_steps_of_the_schedule(layout: Layout, reach: Reach) -> None:
    programs = [list(steps(layout, reach, process)) for process in range(layout.processes)]
    found = list(exchanges(Workload(layout, reach)))
    assert len(found) == layout.processes
    for t, exchange in enumerate(found):
        row = [program[t] for program in programs]
        assert exchange.pairs.tolist() == [pairs_of(step, reach) for step in row]
        assert exchange.calls.tolist() == [len(step.blocks) for step in row]
        if t > 0:
            received = [sum(span.length for span in step.receives) for step in row]
            assert exchange.rows.tolist() == received


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_own_parts_are_the_first_step(layout: Layout, reach: Reach) -> None:
    early, late = own_parts(Workload(layout, reach))
    first = next(exchanges(Workload(layout, reach)))
    assert (early[0] + late[0]).tolist() == first.pairs.tolist()
    for process in range(layout.processes):
        parts = in_two(next(steps(layout, reach, process)).blocks, reach)
        assert [early[1][process], late[1][process]] == [len(blocks) for blocks in parts]


@pytest.mark.parametrize("reach", [Reach(None, 0), Reach(10**6, 10**5)], ids=str)
def test_exchanges_of_1024_processes(reach: Reach) -> None:
    length, processes = 1_000_000_000, 1024
    layout = zigzag(length, processes)
    looked_at = (0, 511, 1023)
    programs = [steps(layout, reach, process) for process in looked_at]
    total = 0.0
    for exchange, *row in zip(exchanges(Workload(layout, reach)), *programs, strict=True):
        total += float(exchange.pairs.sum())
        for process, step in zip(looked_at, row, strict=True):
            assert exchange.calls[process] == len(step.blocks)
            if step.source != process:
                assert exchange.rows[process] == sum(span.length for span in step.receives)
    expected = length * length
    for side in (reach.left, reach.right):
        beyond = 0 if side is None else length - 1 - side
        expected -= beyond * (beyond + 1) // 2
    # Sums of up to 10^18 in float64.
    assert total == pytest.approx(expected, rel=1e-12)


def test_attended_pairs_of_any_spans() -> None:
    generator = torch.Generator().manual_seed(0)
    for reach in REACHES.values():
        for _ in range(50):
            first, begin, *lengths = torch.randint(9, (4,), generator=generator).tolist()
            last, end = first + lengths[0], begin + lengths[1]
            spans = [torch.tensor(float(x)).double() for x in (first, last, begin, end)]
            expected = sum(
                (reach.left is None or k >= q - reach.left)
                and (reach.right is None or k <= q + reach.right)
                for q in range(first, last)
                for k in range(begin, end)
            )
            assert attended_pairs(*spans, reach) == expected


def work_of(layout: Layout, reach: Reach) -> Workload:
    return Workload(layout, reach, batch=2, heads=(4, 2, 4), widths=(8, 16), element=4)


class Clock:
    """The forward of `ring`, process by process and step by step, as its code reads."""

    def __init__(self, work: Workload, rates: Rates) -> None:
        self.work, self.rates = work, rates
        self.programs = [
            {
                t: step
                for t, step in enumerate(steps(work.layout, work.reach, process))
                if step.blocks or step.sends
            }
            for process in range(work.layout.processes)
        ]
        self.begin = cache(self._begin)

    def previous(self, process: int, t: int) -> int | None:
        return max((other for other in self.programs[process] if other < t), default=None)

    def asked(self, process: int, t: int) -> float:
        """When the process starts the messages of step t: as the step before it begins."""
        previous = self.previous(process, t)
        return 0.0 if previous is None else self.begin(process, previous)

    def arrival(self, sender: int, receiver: int, t: int) -> float:
        rows = sum(span.length for span in self.programs[sender][t].sends)
        if rows == 0:
            return 0.0
        work = self.work
        width = work.heads[1] * work.widths[0] + work.heads[2] * work.widths[1]
        size = work.batch * rows * width * work.element
        start = max(self.asked(sender, t), self.asked(receiver, t))
        return start + self.rates.latency + size / self.rates.bandwidth

    def _begin(self, process: int, t: int) -> float:
        step, previous = self.programs[process][t], self.previous(process, t)
        times = [0.0 if previous is None else self.end(process, previous)]
        if step.receives:
            times.append(self.arrival(step.source, process, t))
        if step.sends:
            times.append(self.arrival(process, step.target, t))
        return max(times)

    def end(self, process: int, t: int) -> float:
        work, step = self.work, self.programs[process][t]
        flops = 2 * work.batch * work.heads[0] * pairs_of(step, work.reach) * sum(work.widths)
        seconds = flops / self.rates.forward + len(step.blocks) * self.rates.call
        return self.begin(process, t) + seconds


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
@pytest.mark.parametrize("bandwidth", [2.0**2, 2.0**20])
def test_the_forward_of_a_ring_on_a_clock(layout: Layout, reach: Reach, bandwidth: float) -> None:
    work, rates = work_of(layout, reach), replace(RATES, bandwidth=bandwidth)
    clock = Clock(work, rates)
    found = Timeline(work, rates)
    timeline.ring(found, FORWARD)
    expected = [
        max((clock.end(process, t) for t in program), default=0.0)
        for process, program in enumerate(clock.programs)
    ]
    assert found.clock.tolist() == expected


def one_pass(method: str, work: Workload, rates: Rates, direction: object) -> Timeline:
    found = Timeline(work, rates)
    cost.METHODS[method].run(found, direction)
    return found


EVEN = Workload(contiguous([64] * 8), heads=(4, 4, 4), widths=(16, 16))
ROW_BYTES = 2 * 4 * 16 * 4
COMPUTE = 2 * 4 * 64 * 64 * 32 / RATES.forward + RATES.call


@pytest.mark.parametrize("message", [0.5 * COMPUTE, 3.0 * COMPUTE])
def test_a_ring_of_equal_blocks(message: float) -> None:
    rates = replace(RATES, bandwidth=64 * ROW_BYTES / (message - RATES.latency))
    found = one_pass("ring", EVEN, rates, FORWARD)
    expected = 7 * max(COMPUTE, message) + COMPUTE
    assert found.clock.tolist() == pytest.approx([expected] * 8, rel=1e-12)
    assert found.computing.tolist() == pytest.approx([8 * COMPUTE] * 8, rel=1e-12)
    assert found.sent.tolist() == [7 * 64 * ROW_BYTES] * 8


def test_the_backward_of_a_ring_hides_its_messages_behind_long_blocks() -> None:
    found = one_pass("ring", EVEN, replace(RATES, bandwidth=2.0**20), BACKWARD)
    block = 2 * 4 * 64 * 64 * (3 * 16 + 2 * 16) / RATES.backward + RATES.call
    # The last gradients travel during the second half of the first block, a call of its own.
    assert found.clock.tolist() == pytest.approx([8 * block + RATES.call] * 8, rel=1e-12)
    assert found.sent.tolist() == [2 * 7 * 64 * ROW_BYTES] * 8


def test_keys_and_gradients_share_a_slow_link() -> None:
    slow = Rates(forward=1e12, backward=1e12, bandwidth=1e3, latency=0.0)
    found = one_pass("ring", EVEN, slow, BACKWARD)
    # The link is never idle, but for the first message of gradients and the last of keys.
    messages = 2 * 7 * 64 * ROW_BYTES / 1e3
    assert found.clock.tolist() == pytest.approx([messages] * 8, rel=1e-3)


def test_all_gather_receives_before_it_computes() -> None:
    found = one_pass("all_gather", EVEN, RATES, FORWARD)
    collecting = RATES.latency + 7 * 64 * ROW_BYTES / RATES.bandwidth
    computing = 8 * (COMPUTE - RATES.call) + RATES.call
    assert found.clock.tolist() == pytest.approx([collecting + computing] * 8, rel=1e-12)
    both = one_pass("all_gather", EVEN, RATES, BACKWARD)
    assert both.sent.tolist() == [2 * 7 * 64 * ROW_BYTES] * 8


def test_ulysses_moves_each_row_once() -> None:
    work = replace(EVEN, heads=(8, 8, 8))
    found = one_pass("ulysses", work, RATES, FORWARD)
    moved = 64 * (7 / 8) * 4 * (3 * 8 * 16 + 8 * 16 + 2 * 8)
    assert found.sent.tolist() == [moved] * 8
    computing = 2 * 1 * 512 * 512 * 32 / RATES.forward + RATES.call
    assert found.computing.tolist() == pytest.approx([computing] * 8)
    with pytest.raises(ValueError, match="needs 8 groups of heads, got 4"):
        predict("ulysses", EVEN, RATES)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="expected method as one of ring, .* got 'rings'"):
        predict("rings", EVEN, RATES)


@pytest.mark.parametrize("method", cost.METHODS)
def test_one_process_computes_and_nothing_else(method: str) -> None:
    found = predict(method, replace(EVEN, layout=contiguous([100])), RATES)
    flops = 2 * 4 * 100 * 100
    calls = 3 if method == "ring" else 2  # whose backward has its own block in two parts
    seconds = flops * 32 / RATES.forward + flops * 80 / RATES.backward + calls * RATES.call
    assert found.seconds == pytest.approx(seconds, rel=1e-12)
    assert (found.sent, found.waiting) == (0.0, pytest.approx(0.0, abs=1e-12))


def test_zigzag_takes_half_the_time_of_contiguous_rows() -> None:
    fast = replace(RATES, bandwidth=1e12, latency=0.0, call=0.0)
    causal = Workload(contiguous([1000] * 64), Reach(None, 0))
    balanced = replace(causal, layout=zigzag(64000, 64))
    ratio = predict("ring", causal, fast).seconds / predict("ring", balanced, fast).seconds
    assert ratio == pytest.approx(2.0, rel=0.02)  # 2 - 1/64


@pytest.mark.parametrize("method", ["ring", "all_gather"])
def test_under_a_window_the_time_does_not_grow_with_the_processes(method: str) -> None:
    found = [
        predict(method, Workload(contiguous([10000] * count), Reach(99, 0)), RATES)
        for count in (4, 64)
    ]
    assert found[0].seconds == pytest.approx(found[1].seconds)
    assert found[0].memory == found[1].memory
    # Keys to the next process in both directions, and gradients to the last.
    assert found[1].sent == 3 * 99 * 2 * 8 * 64 * 4


def test_memory_of_a_ring_shrinks_with_the_processes() -> None:
    sizes = {
        method: [
            predict(method, Workload(contiguous([2**20 // count] * count)), RATES).memory
            for count in (2, 16)
        ]
        for method in ("ring", "all_gather")
    }
    assert sizes["ring"][1] == pytest.approx(sizes["ring"][0] / 8)
    assert sizes["all_gather"][1] > sizes["ring"][1] * 2


def test_best_is_the_fastest_that_fits_and_the_smallest_of_the_fastest() -> None:
    def made(seconds: float, memory: float) -> Prediction:
        return Prediction(seconds, 0.0, memory, 0.0, 0.0)

    found = {"a": made(10.0, 100.0), "b": made(10.1, 50.0), "c": made(20.0, 10.0)}
    assert best(found) == "b"
    assert best(found, 20.0) == "c"
    assert best(found, 5.0) is None


# --- against real calls ---------------------------------------------------------------------------


def bytes_sent(method: str, layout: Layout, options: dict, load_balance: str | None) -> int:
    """What this process sends in a forward and a backward, without what the processes agree by."""
    from flash_attention.distributed import communication, context_parallel_attention

    sent = 0
    start = communication.Channel.start

    def counted(channel, sends, receives, tag=communication.TAG):
        nonlocal sent
        given = list(sends)
        sent += sum(x.numel() * x.element_size() for peer, x in given if peer != channel.rank)
        return start(channel, given, receives, tag)

    communication.Channel.start = counted
    try:
        rows = layout.rows(dist.get_rank())
        query, key, value = (
            torch.ones(2, heads, rows, width, requires_grad=True)
            for heads, width in ((4, 8), (4, 8), (4, 16))
        )
        out = context_parallel_attention(
            query, key, value, method=method, load_balance=load_balance, **options
        )
        out.sum().backward()
    finally:
        communication.Channel.start = start
    return sent


CALLS = {
    "ring": ("ring", contiguous([30, 7, 0, 50]), Reach(), {}, None),
    "ring-causal": ("ring", contiguous([30, 7, 0, 50]), Reach(None, 0), {"causal": True}, None),
    "ring-zigzag": ("ring", zigzag(87, 4), Reach(None, 0), {"causal": True}, "zigzag"),
    "ring-window": ("ring", contiguous([30, 7, 5, 50]), Reach(9, 4), {"window": (9, 4)}, None),
    "all_gather": ("all_gather", contiguous([30, 7, 0, 50]), Reach(), {}, None),
    "ulysses": ("ulysses", contiguous([30, 7, 0, 50]), Reach(None, 0), {"causal": True}, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_bytes_are_those_that_a_call_sends(four_processes: ProcessPool, name: str) -> None:
    method, layout, reach, options, load_balance = CALLS[name]
    work = Workload(layout, reach, batch=2, heads=(4, 4, 4), widths=(8, 16))
    found = Timeline(work, RATES)
    for direction in (FORWARD, BACKWARD):
        cost.METHODS[method].run(found, direction)
    sent = four_processes.run(bytes_sent, method, layout, options, load_balance)
    assert found.sent.tolist() == sent


def test_cost_of_nothing() -> None:
    found = predict("ring", Workload(contiguous([0, 0])), RATES)
    assert (found.seconds, found.sent, found.memory) == (0.0, 0.0, 0.0)
    assert not math.isnan(found.waiting)
