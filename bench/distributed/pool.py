"""Processes that run functions together: a Gloo group on this machine, or a single process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# A process may wait for one that computes a part of a million positions.
GROUP_TIMEOUT = timedelta(hours=2)


def _pin(rank: int, threads: int) -> None:
    """To cores of its own; where there are too few, to the same as other processes."""
    cores = sorted(os.sched_getaffinity(0))
    first = rank * threads
    os.sched_setaffinity(0, {cores[i % len(cores)] for i in range(first, first + threads)})


def _serve(rank: int, size: int, threads: int, rendezvous: str, connection: Connection) -> None:
    _pin(rank, threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    if size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=GROUP_TIMEOUT,
        )
    while (order := connection.recv()) is not None:
        function, arguments, with_rank = order
        try:
            found = function(*arguments, rank) if with_rank else function(*arguments)
            connection.send((found, None))
        except BaseException:
            connection.send((None, traceback.format_exc()))
    os._exit(0)  # destroying the group would wait for processes that have failed


class Pool:
    """Processes 0 to size - 1, each with some threads; a context manager."""

    def __init__(self, size: int, threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        rendezvous = str(Path(self._folder.name, "rendezvous"))
        self.size = size
        self._processes = []
        self._connections: list[Connection] = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, threads, rendezvous, there), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)

    def run(self, function: Callable[..., Any], *arguments: Any, rank: bool = False) -> list[Any]:
        """What function(*arguments) returns on each process, or with `rank` as its last argument.

        Exits if one fails, with what it raised.
        """
        for connection in self._connections:
            connection.send((function, arguments, rank))
        found = []
        for number, connection in enumerate(self._connections):
            try:
                result, failure = connection.recv()
            except (EOFError, OSError):
                result, failure = None, "it ended; is there enough memory?"
            if failure is not None:
                sys.exit(
                    f"bench/distributed: process {number} of {self.size} failed in "
                    f"{function.__name__}: {failure}"
                )
            found.append(result)
        return found

    def close(self) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.kill()
            process.join()
            connection.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
