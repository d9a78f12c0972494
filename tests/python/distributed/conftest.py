"""Pools of processes that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.process_pool import ProcessPool


@pytest.fixture(scope="session")
def pool_of() -> Iterator[Callable[[int], ProcessPool]]:
    """A function that gives the pool of a size, a new one if a test has broken the last."""
    pools: dict[int, ProcessPool] = {}

    def get(size: int) -> ProcessPool:
        if size in pools and pools[size].is_broken:
            pools.pop(size).close()
        if size not in pools:
            pools[size] = ProcessPool(size)
        return pools[size]

    yield get
    for pool in pools.values():
        pool.close()


@pytest.fixture
def two_processes(pool_of: Callable[[int], ProcessPool]) -> ProcessPool:
    return pool_of(2)


@pytest.fixture
def four_processes(pool_of: Callable[[int], ProcessPool]) -> ProcessPool:
    return pool_of(4)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "processes" in metafunc.fixturenames:
        given = metafunc.config.getoption("processes")
        sizes = [2, 4] if given is None else [given]
        metafunc.parametrize("processes", sizes, indirect=True)


@pytest.fixture
def processes(request: pytest.FixtureRequest, pool_of: Callable[[int], ProcessPool]) -> ProcessPool:
    """Two and four processes in turn, or as many as --processes says."""
    return pool_of(request.param)
