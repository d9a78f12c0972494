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


# What functions raise before they send anything but what the processes agree by.
REFUSALS = (TypeError, ValueError, NotImplementedError)


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
            AssertionError: a process did not answer within `seconds`, or sent what cannot be read.
        """
        answers = self._answers(function, arguments, seconds)
        kinds = {kind for kind, _ in answers}
        refused = all(isinstance(error, REFUSALS) for _, error in answers)
        # If only some have failed, the others may still wait for their messages.
        self.is_broken = not (kinds == {"returned"} or (kinds == {"raised"} and refused))
        return [answer for _, answer in answers]

    def _answers(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], seconds: float
    ) -> list[tuple[str, Any]]:
        # Unless the caller knows better: an answer that is not read would be taken for a later one.
        self.is_broken = True
        end = time.monotonic() + seconds
        for connection, each in zip(self._connections, arguments, strict=True):
            try:
                connection.send((function, each))
            except OSError:  # it has ended, which its answer says
                pass
        return [self._answer(rank, end, seconds) for rank in range(self.size)]

    def _answer(self, rank: int, end: float, seconds: float) -> tuple[str, Any]:
        connection = self._connections[rank]
        if not connection.poll(max(0.0, end - time.monotonic())):
            raise AssertionError(f"process {rank} did not answer within {seconds} s")
        try:
            return connection.recv()
        except (EOFError, OSError):
            return "ended", None
        except Exception as error:  # an exception that cannot be unpickled
            raise AssertionError(f"process {rank} sent what cannot be read: {error!r}") from error

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function` returns on each process; raises what it raises on any.

        After an error the processes may wait for different messages, so they are not used again.
        """
        answers = self._answers(function, [arguments] * self.size, SECONDS)
        for rank, (kind, answer) in enumerate(answers):
            if kind != "returned":
                error = answer or AssertionError("the process has ended")
                error.add_note(f"on process {rank} of {self.size}")
                raise error
        self.is_broken = False
        return [answer for _, answer in answers]

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in zip(self.processes, self._connections, strict=True):
            if not self.is_broken:
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
