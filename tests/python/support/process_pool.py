"""Processes with a Gloo group, which run functions together, case after case.

They are forked from a server that has imported torch once, so that a pool starts in some tenths of
a second. Every wait is bounded, so a hang fails a test with the processes that did not answer.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

# Far longer than any case takes, even on a busy machine.
SECONDS = 120.0
# Of the group: it bounds the wait for a process that does not answer.
GROUP_SECONDS = 60.0


def _serve(
    rank: int, size: int, rendezvous: str, group_seconds: float, connection: Connection
) -> None:
    # A name of the machine that does not resolve must not keep Gloo from finding an address.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import flash_attention  # noqa: F401
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=group_seconds),
    )
    while (order := connection.recv()) is not None:
        function, arguments = order
        try:
            answer: tuple[str, Any] = ("returned", function(*arguments))
        except BaseException as error:
            answer = ("raised", error)
        try:
            connection.send(answer)
        except Exception as error:  # an exception that cannot be pickled
            connection.send(("raised", AssertionError(f"{answer!r}: {error!r}")))
    # Not destroyed: that would wait for processes that a test has ended.
    os._exit(0)


class ProcessPool:
    """Processes 0 to size - 1 of a group; a context manager."""

    def __init__(self, size: int, group_seconds: float = GROUP_SECONDS) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed.tensor", "flash_attention"])
        self._folder = tempfile.TemporaryDirectory()
        rendezvous = str(Path(self._folder.name, "rendezvous"))
        self.is_broken = False
        self.processes = []
        self._connections: list[Connection] = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, rendezvous, group_seconds, there), daemon=True
            )
            process.start()
            there.close()
            self.processes.append(process)
            self._connections.append(here)

    @property
    def size(self) -> int:
        return len(self.processes)

    def outcomes(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        seconds: float = SECONDS,
    ) -> list[Any]:
        """What function(*arguments[rank]) returns, raises (an exception), or None if it died.

        Raises:
            AssertionError: a process did not answer within `seconds`.
        """
        for connection, each in zip(self._connections, arguments, strict=True):
            connection.send((function, each))
        end = time.monotonic() + seconds
        answers: list[Any] = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(max(0.0, end - time.monotonic())):
                self.is_broken = True
                raise AssertionError(f"process {rank} did not answer within {seconds} s")
            try:
                answers.append(connection.recv()[1])
            except EOFError:
                answers.append(None)
        return answers

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function` returns on each process; raises what it raises on any.

        After an error the processes may wait for different messages, so they are not used again.
        """
        answers = self.outcomes(function, [arguments] * self.size)
        for rank, answer in enumerate(answers):
            if isinstance(answer, BaseException) or not self.processes[rank].is_alive():
                self.is_broken = True
                error = answer or AssertionError("the process has ended")
                error.add_note(f"on process {rank} of {self.size}")
                raise error
        return answers

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in zip(self.processes, self._connections, strict=True):
            try:
                connection.send(None)
            except OSError:  # it has ended
                pass
            process.join(1.0)
            process.kill()
            process.join()
            connection.close()
        self._folder.cleanup()

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
