"""flash_train an epoch at a time: it stands still while it is another's turn."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import IO, NoReturn

HEADING = re.compile(r"Training \w+ on (\d+) windows of (\d+) series, (\d+) parameters")
EPOCH = re.compile(r"epoch \d+/\d+ .*validation loss ([-+.\w]+)")


class TrainingProcess:
    """A call of flash_train, stopped by SIGSTOP wherever it is not its turn.

    It is stopped as soon as it has said that an epoch is done, validation included. What it does of
    the next epoch until then, a step or so, counts in the turn in which it was done.

    Attributes:
        windows, series, parameters: what it said it trains with.
        validation_loss: of the last epoch, as it printed it.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.validation_loss = float("nan")
        try:
            # A process group of its own: Ctrl-C is for this process, which ends the other. Should
            # this one be killed, the kernel hangs up on a stopped group that nobody can wake.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        except OSError as error:
            sys.exit(
                f"bench/etth1.py: expected flash_train at {command[0]}, got {error.strerror}; run "
                "`make build`, or name it by --flash-train"
            )
        assert self.process.stdout is not None
        self.stdout: IO[str] = self.process.stdout
        self.lines: list[str] = []
        try:
            match = self._read_until(HEADING)
            self._stop()
        except BaseException:
            self.kill()
            raise
        self.windows, self.series, self.parameters = map(int, match.groups())

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def epoch(self) -> float:
        """Lets it run one epoch with its validation; seconds."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        match = self._read_until(EPOCH)
        self._stop()
        seconds = time.perf_counter() - start
        self.validation_loss = float(match[1])
        return seconds

    def finish(self) -> None:
        """Lets it run to its end, in which it tests and writes its files."""
        self.process.send_signal(signal.SIGCONT)
        self.lines += self.stdout
        if self.process.wait() != 0:
            self._fail()

    def kill(self) -> None:
        """Ends it, wherever it is."""
        self.process.kill()  # nothing, if it has ended already
        self.process.wait()
        self.stdout.close()

    def _read_until(self, pattern: re.Pattern[str]) -> re.Match[str]:
        for line in self.stdout:
            self.lines.append(line)
            if match := pattern.match(line):
                return match
        self.process.wait()
        self._fail()

    def _stop(self) -> None:
        """Returns when it stands still, or has ended."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _fail(self) -> NoReturn:
        sys.exit(
            f"bench/etth1.py: {' '.join(self.command)}\nended with status "
            f"{self.process.returncode}:\n{''.join(self.lines)}"
        )
