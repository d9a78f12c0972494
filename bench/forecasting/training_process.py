"""Runs flash_train epoch by epoch, stopped in between."""

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
    """A process of flash_train, stopped by SIGSTOP except while `epoch` or `finish` run.

    It is stopped as soon as it prints that an epoch, validation included, is done. A step or so of
    the next epoch, done before the stop, counts towards the epoch that just ended.

    Attributes:
        windows, series, parameters: the sizes that it prints.
        validation_loss: of the last epoch, as printed.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.validation_loss = float("nan")
        try:
            # In a process group of its own, so that Ctrl-C reaches this process only, which then
            # ends the other. If this one is killed, the kernel sends SIGHUP to the orphaned group.
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
                f"bench/forecasting/etth1.py: expected flash_train at {command[0]}, got "
                f"{error.strerror}; run "
                "`make build`, or name it with --flash-train"
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
        """Runs one epoch with its validation; returns the seconds."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        match = self._read_until(EPOCH)
        self._stop()
        seconds = time.perf_counter() - start
        self.validation_loss = float(match[1])
        return seconds

    def finish(self) -> None:
        """Runs it to its end, where it tests and writes its files."""
        self.process.send_signal(signal.SIGCONT)
        self.lines += self.stdout
        if self.process.wait() != 0:
            self._fail()

    def kill(self) -> None:
        """Ends it, in whatever state it is."""
        self.process.kill()  # does nothing if it has ended
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
        """Stops it; returns once it is stopped or has ended."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _fail(self) -> NoReturn:
        sys.exit(
            f"bench/forecasting/etth1.py: {' '.join(self.command)}\nended with status "
            f"{self.process.returncode}:\n{''.join(self.lines)}"
        )
