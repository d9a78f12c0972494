"""Who sends which keys to whom, without processes: also for 1,024 of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from flash_attention.distributed.schedule import (
    Block,
    Layout,
    Reach,
    Span,
    Step,
    blocks,
    contiguous,
    in_two,
    message,
    steps,
    zigzag,
)

from support.layouts import LAYOUTS, REACHES, attends

pytestmark = pytest.mark.once


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_every_attended_pair_is_computed_once_by_the_holder_of_the_query(
    layout: Layout, reach: Reach
) -> None:
    positions = range(layout.length)
    expected = {(q, k) for q in positions for k in positions if attends(reach, q, k)}
    computed: list[tuple[int, int]] = []
    for process in range(layout.processes):
        held = {i for chunk in layout.chunks[process] for i in range(*chunk)}
        for step in steps(layout, reach, process):
            for block in step.blocks:
                assert set(range(*block.query)) <= held
                pairs = itertools.product(range(*block.query), range(*block.key))
                computed += [pair for pair in pairs if attends(reach, *pair)]
    assert len(computed) == len(set(computed))
    assert set(computed) == expected


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_both_parts_of_the_first_step_have_its_pairs(layout: Layout, reach: Reach) -> None:
    def pairs(found: Iterable[Block]) -> list[tuple[int, int]]:
        computed = [itertools.product(range(*b.query), range(*b.key)) for b in found]
        return sorted(p for p in itertools.chain(*computed) if attends(reach, *p))

    for process in range(layout.processes):
        own = next(steps(layout, reach, process)).blocks
        early, late = in_two(own, reach)
        assert pairs([*early, *late]) == pairs(own)
        assert len(late) == min(1, len(own))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_a_message_has_exactly_the_keys_from_the_first_to_the_last_attended(
    layout: Layout, reach: Reach
) -> None:
    for process in range(layout.processes):
        queries = [i for chunk in layout.chunks[process] for i in range(*chunk)]
        for step in steps(layout, reach, process):
            if step.source == process:
                assert step.receives == ()
                continue
            expected = []
            for chunk in layout.chunks[step.source]:
                keys = [k for k in range(*chunk) if any(attends(reach, q, k) for q in queries)]
                if keys:
                    expected.append(Span(keys[0], keys[-1] + 1))
            assert list(step.receives) == expected


def in_lockstep(layout: Layout, reach: Reach) -> Iterator[list[Step]]:
    """Yields step t of all processes, and checks that its messages are sent and awaited in it.

    Then no process waits for ever: each is done with step t when all have come that far.
    """
    programs = [steps(layout, reach, process) for process in range(layout.processes)]
    for t, row in enumerate(zip(*programs, strict=True)):
        for process, step in enumerate(row):
            assert step.source == (process - t) % layout.processes
            assert step.target == (process + t) % layout.processes
            assert step.sends == row[step.target].receives
        yield list(row)
    assert t == layout.processes - 1


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_every_message_is_sent_and_awaited_in_the_same_step(layout: Layout, reach: Reach) -> None:
    rows = list(in_lockstep(layout, reach))
    assert all(step.sends == step.receives == () for step in rows[0])


def work_of(step: Step) -> int:
    """The number of pairs with key <= query in blocks of equal chunks or of disjoint ones."""
    pairs = 0
    for query, key in step.blocks:
        whole = key.end <= query.begin
        assert whole or query == key
        pairs += query.length * key.length if whole else query.length * (query.length + 1) // 2
    return pairs


def test_64_processes_share_the_work_equally() -> None:
    layout = zigzag(1_000_000_000, 64)
    work = [0] * 64
    for row in in_lockstep(layout, Reach(None, 0)):
        for process, step in enumerate(row):
            work[process] += work_of(step)
    assert sum(work) == layout.length * (layout.length + 1) // 2
    # Chunks have 7,812,500 rows each.
    assert max(work) == min(work)


def test_1024_processes(request: pytest.FixtureRequest) -> None:
    """A billion positions, causal and balanced: every message awaited, each pair computed once.

    `make stress` looks at all processes, which takes half a minute, `make test` at some.
    """
    processes, length = 1024, 1_000_000_000
    layout = zigzag(length, processes)
    reach = Reach(None, 0)
    assert layout.length == length
    looked_at = range(0, processes, 1 if request.config.getoption("all_pairs") else 93)
    total = 0
    for process in looked_at:
        work = 0
        for t, step in enumerate(steps(layout, reach, process)):
            assert (step.source, step.target) == ((process - t) % 1024, (process + t) % 1024)
            if t > 0:
                assert step.receives == message(layout, reach, process, step.source)
                assert step.sends == message(layout, reach, step.target, process)
            work += work_of(step)
        # Its rows attend their own position and all before it.
        assert work == sum((b + 1 + e) * (e - b) // 2 for b, e in layout.chunks[process])
        total += work
    if len(looked_at) == processes:
        assert total == length * (length + 1) // 2


def test_a_window_sends_only_to_neighbours() -> None:
    layout = contiguous([1_000_000] * 1024)
    reach = Reach(4096, 0)
    for process in (0, 1, 500, 1023):
        sent = [(s.target, s.sends) for s in steps(layout, reach, process) if s.sends]
        begin = (process + 1) * 1_000_000
        expected = [(process + 1, (Span(begin - 4096, begin),))] if process < 1023 else []
        assert sent == expected
    assert blocks(layout, reach, 5, 4) == [(Span(5_000_000, 5_004_096), Span(4_995_904, 5_000_000))]
