"""Bad input and lost processes: an error on every process, which says what differs; no hang."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from support.process_pool import ProcessPool

pytestmark = pytest.mark.once


def call(changes: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> None:
    """A call on this process, with `changes` to its options and shapes."""
    from flash_attention.distributed import context_parallel_attention

    shapes = {"query": (2, 4, 10, 8), "key": (2, 4, 10, 8), "value": (2, 4, 10, 8)} | (shapes or {})
    dtype = changes.pop("dtype", torch.float32)
    inputs = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
    context_parallel_attention(**(inputs | changes))


def shapes_of(batch: int = 2, heads: int = 4, rows: int = 10, width: int = 8) -> dict[str, Any]:
    return {name: (batch, heads, rows, width) for name in ("query", "key", "value")}


# What process 1 does differently, and the message on both processes.
DIFFERENCES = {
    "batch": (({}, shapes_of(batch=3)), "same batch size on every process, got 2 on .* and 3 on"),
    "heads": (({}, shapes_of(heads=2)), "same number of query heads .* got 4 on .* and 2 on"),
    "width": (({}, shapes_of(width=4)), "same head_dim on every process, got 8 on .* and 4 on"),
    "dtype": (({"dtype": torch.float64},), "same dtype .* got torch.float32 .* torch.float64"),
    "causal": (({"causal": True},), "same causal .* got False on process 0 and True on process 1"),
    "window": (({"window": (3, 0)},), r"same window .* got \[-1, -1\] on .* and \[3, 0\] on"),
    "softcap": (({"softcap": 1.5},), "same softcap .* got 0.0 on process 0 and 1.5 on process 1"),
    "scale": (({"scale": 1.5},), "same scale .* got None on process 0 and 1.5 on process 1"),
    "dropout": (({"dropout": 0.5},), "same dropout .* got 0.0 on process 0 and 0.5 on process 1"),
    "method": (({"method": "all_gather"},), "same method .* got ring on .* and all_gather on"),
    "load_balance": (({"load_balance": "zigzag"},), "same load_balance .* got None .* zigzag"),
    "sinks": (({"sinks": torch.ones(4)},), "same sinks .* got none on .* and float32 .* hash"),
    "slopes": (({"alibi_slopes": torch.ones(4)},), "same alibi_slopes .* got none on"),
    "gradients": (
        ({"key": torch.ones(2, 4, 10, 8, requires_grad=True)},),
        r"same choice of gradients .* got \[False, .* and \[False, True, False, False, False\]",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_process_names_what_differs(two_processes: ProcessPool, name: str) -> None:
    different, message = DIFFERENCES[name]
    errors = two_processes.outcomes(call, [({},), different])
    for error in errors:
        assert isinstance(error, ValueError), error
        assert re.search(message, str(error)), error


REFUSED = {
    "method": ({"method": "rings"}, ValueError, "expected method as one of ring, .*, got 'rings'"),
    "method-list": ({"method": ["ring"]}, ValueError, r"one of ring, .*, got \['ring'\]"),
    "load_balance": ({"load_balance": "zag"}, ValueError, "'zigzag' or None, got 'zag'"),
    "softcap": ({"softcap": -1.0}, ValueError, "expected softcap to be finite"),
    "window": ({"window": (-2, 0)}, ValueError, "expected window as"),
    "window-of-one": ({"window": (1, 2, 3)}, ValueError, "expected window as"),
    "dropout": ({"dropout": 1.5}, ValueError, "expected dropout to be a probability"),
    "dtype": ({"dtype": torch.int64}, TypeError, "expected query, key and value of dtype"),
    "sinks": ({"sinks": torch.ones(3)}, ValueError, "expected sinks of shape"),
    "type": ({"query": "text"}, TypeError, "expected query as a plain tensor"),
    "rank": ({"query": torch.ones(4, 10, 8)}, ValueError, r"as \[batch, heads, length, head_dim\]"),
    "rows": ({"key": torch.ones(2, 4, 9, 8)}, ValueError, "10 of query and 9 of key"),
    "values": ({"value": torch.ones(2, 4, 9, 8)}, ValueError, "key and value of one length"),
    "heads": ({"key": torch.ones(2, 3, 10, 8)}, ValueError, "a multiple of the heads of key"),
    "sparse": ({"query": torch.ones(2, 4, 10, 8).to_sparse()}, TypeError, "as a dense tensor"),
    "meta": ({"query": torch.ones(2, 4, 10, 8, device="meta")}, NotImplementedError, "on the CPU"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_argument_is_refused_on_every_process(
    two_processes: ProcessPool, name: str
) -> None:
    changes, kind, message = REFUSED[name]
    for error in two_processes.outcomes(call, [(dict(changes),)] * 2):
        assert isinstance(error, kind), error
        assert re.search(message, str(error)), error


def test_nan_does_not_differ_from_nan(two_processes: ProcessPool) -> None:
    """Scores of NaN are a choice; what differs comes after it in the comparison."""
    scale = float("nan")
    given = [({"scale": scale, "dropout": p},) for p in (0.0, 0.5)]
    for error in two_processes.outcomes(call, given):
        assert isinstance(error, ValueError)
        assert "same dropout on every process, got 0.0 on process 0 and 0.5" in str(error)


def test_the_others_learn_why_a_process_refused_its_arguments(two_processes: ProcessPool) -> None:
    told, refused = two_processes.outcomes(call, [({},), ({"softcap": -1.0},)])
    assert isinstance(refused, ValueError) and "expected softcap" in str(refused)
    assert isinstance(told, ValueError)
    assert "process 1 refused its arguments: flash::attention: expected softcap" in str(told)


def test_ulysses_needs_as_many_groups_of_heads_as_processes(four_processes: ProcessPool) -> None:
    changes = {"key": torch.ones(2, 2, 10, 8), "method": "ulysses"}
    for error in four_processes.outcomes(call, [(dict(changes),)] * 4):
        assert isinstance(error, ValueError)
        assert "common divisor of at least the 4 processes" in str(error)
        assert "got 2; use method='ring'" in str(error)


def unshard(tensor: torch.Tensor, dim: int, **options: Any) -> None:
    from flash_attention.distributed import unshard_sequence

    unshard_sequence(tensor, dim, **options)


def test_zigzag_has_the_rows_of_shard_sequence(two_processes: ProcessPool) -> None:
    for error in two_processes.outcomes(
        call,
        [({"load_balance": "zigzag"}, shapes_of(rows=n)) for n in (3, 9)],
    ):
        assert isinstance(error, ValueError)
        assert "[6, 6] of 12 on processes 0 to 1, got [3, 9]" in str(error)
    for error in two_processes.outcomes(unshard, [(torch.ones(n), 0) for n in (3, 9)]):
        assert error is None
    for error in two_processes.outcomes(unshard, [(torch.ones(2, n), n - 2) for n in (3, 2)]):
        assert isinstance(error, ValueError)
        assert "same dim on every process, got 1 on process 0 and 0 on process 1" in str(error)


def outside_of_its_group() -> str:
    from flash_attention.distributed import shard_sequence

    only_first = dist.new_group([0])
    try:
        shard_sequence(torch.ones(4), 0, group=only_first)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_process_outside_of_the_group(two_processes: ProcessPool) -> None:
    inside, outside = two_processes.run(outside_of_its_group)
    assert inside == "no error"
    assert re.search("expected a group that this process, number 1, is in", outside)


def destroyed_group() -> str:
    from flash_attention.distributed import shard_sequence

    group = dist.new_group([0, 1])
    dist.destroy_process_group(group)
    try:
        shard_sequence(torch.ones(4), 0, group=group)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_destroyed_group(two_processes: ProcessPool) -> None:
    for error in two_processes.run(destroyed_group):
        assert "expected a group of torch.distributed.new_group, got one that" in error


REFUSED_BY_SEQUENCE = {
    "sparse": (torch.ones(4, 4).to_sparse(), 0, TypeError, "expected a dense tensor, got"),
    "number": (torch.ones(4, 4), 1.0, TypeError, "expected dim as an int, got 1.0"),
    "text": (torch.ones(4, 4), "rows", TypeError, "expected dim as an int, got 'rows'"),
    "dim": (torch.ones(4, 4), 2, ValueError, "expected dim as one of the 2 dimensions"),
}


@pytest.mark.parametrize("name", REFUSED_BY_SEQUENCE)
def test_what_unshard_sequence_refuses(two_processes: ProcessPool, name: str) -> None:
    tensor, dim, kind, message = REFUSED_BY_SEQUENCE[name]
    for error in two_processes.outcomes(unshard, [(tensor, dim)] * 2):
        assert isinstance(error, kind), error
        assert re.search(message, str(error)), error


def test_without_a_process_group() -> None:
    from flash_attention.distributed import context_parallel_attention, shard_sequence

    x = torch.ones(1, 1, 4, 8)
    with pytest.raises(RuntimeError, match="expected a process group, got none; start .* torchrun"):
        context_parallel_attention(x, x, x)
    with pytest.raises(RuntimeError, match="expected a process group, got none"):
        shard_sequence(x, 2)


def second_derivative() -> None:
    from flash_attention.distributed import context_parallel_attention

    x = torch.ones(1, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    out = context_parallel_attention(x, x * 2, x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    gradient.sum().backward()


def test_a_second_derivative_is_refused(two_processes: ProcessPool) -> None:
    for error in two_processes.outcomes(second_derivative, [()] * 2):
        assert isinstance(error, NotImplementedError)
        assert "expected a first derivative, got a request for a second one" in str(error)


def call_or_die(dies: int) -> float:
    """How long it takes to fail, in seconds."""
    if dist.get_rank() == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="flash_attention.distributed: expected a message"):
        call({})
    return time.monotonic() - begin


def test_a_process_that_is_killed_ends_the_call_of_the_others() -> None:
    with ProcessPool(2, group_seconds=20.0) as pool:
        pool.run(dist.barrier)
        seconds, dead = pool.outcomes(call_or_die, [(1,)] * 2)
    assert dead is None
    assert seconds < 25.0  # the timeout of the group, and some


def call_or_stay_away(absent: int) -> float:
    if dist.get_rank() == absent:
        return 0.0
    return call_or_die(-1)


def test_a_process_that_does_not_call_ends_the_call_of_the_others() -> None:
    with ProcessPool(2, group_seconds=2.0) as pool:
        seconds, _ = pool.outcomes(call_or_stay_away, [(1,)] * 2)
    assert 1.0 < seconds < 20.0


def backward_or_stay_away(absent: int) -> None:
    from flash_attention.distributed import context_parallel_attention

    x = torch.ones(1, 2, 50, 8, requires_grad=True)
    out = context_parallel_attention(x, x, x)
    if dist.get_rank() != absent:
        with pytest.raises(RuntimeError, match="a message (from|to reach) process 1 within"):
            out.sum().backward()


def test_a_process_that_does_not_run_the_backward_ends_that_of_the_others() -> None:
    with ProcessPool(2, group_seconds=2.0) as pool:
        assert pool.outcomes(backward_or_stay_away, [(1,)] * 2) == [None, None]
