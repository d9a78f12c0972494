"""The tests' pools of processes: one that a test has broken is replaced for the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch.distributed as dist

from support.process_pool import ProcessPool

pytestmark = pytest.mark.once


class Unreadable(Exception):
    """An exception that pickle writes and cannot read."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def raises() -> None:
    raise ValueError("on every process")


def raises_on_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("on process 1")


def raises_what_cannot_be_read() -> None:
    raise Unreadable("one", "two")


def dies() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


DAMAGES = {
    "raises": (raises, ValueError, "on every process"),
    "raises-on-one": (raises_on_one, ValueError, "on process 1"),
    "unreadable": (raises_what_cannot_be_read, AssertionError, "sent what cannot be read"),
    "dies": (dies, AssertionError, "the process has ended"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_pool_is_replaced_after_an_error(
    pool_of: Callable[[int], ProcessPool], name: str
) -> None:
    damage, kind, message = DAMAGES[name]
    pool = pool_of(2)
    with pytest.raises(kind, match=message):
        pool.run(damage)
    following = pool_of(2)
    assert following is not pool
    assert following.run(dist.get_rank) == [0, 1]


def test_a_refusal_by_every_process_leaves_the_pool_as_it_is(two_processes: ProcessPool) -> None:
    assert all(isinstance(x, ValueError) for x in two_processes.outcomes(raises, [()] * 2))
    assert not two_processes.is_broken
    assert two_processes.run(dist.get_rank) == [0, 1]
    assert [type(x) for x in two_processes.outcomes(raises_on_one, [()] * 2)] == [
        type(None),
        ValueError,
    ]
    assert two_processes.is_broken
