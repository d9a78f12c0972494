"""Trainings on several processes, for their tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def main_with_output(arguments: list[str]) -> tuple[int, str]:
    """The exit status of flash_train in this process, and what it writes to stdout and stderr."""
    import flash_attention.train

    with tempfile.TemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            status = flash_attention.train.main(arguments)
        finally:
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
        file.seek(0)
        return status, file.read().decode()


def start_torchrun(processes: int, restarts: int, arguments: list[str]) -> subprocess.Popen[str]:
    """`torchrun … -m flash_attention.train`, with the workers' output in its own."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(processes), "--max-restarts", str(restarts)),
        *("-m", "flash_attention.train"),
    ]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A name of the machine that does not resolve must not keep Gloo from finding an address.
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )


def workers(torchrun: int) -> Iterator[tuple[int, int]]:
    """Process id and rank of each worker of the process `torchrun`."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        for entry in environment:
            if entry.startswith(b"RANK="):
                yield int(child), int(entry.removeprefix(b"RANK="))


def kill_after_an_epoch(torchrun: subprocess.Popen[str], rank: int) -> str:
    """Ends a worker with SIGKILL after the first epoch; returns torchrun's stderr until then."""
    assert torchrun.stderr is not None
    seen = ""
    while "epoch" not in (line := torchrun.stderr.readline()).lower():
        assert line, seen
        seen += line
    [victim] = [child for child, number in workers(torchrun.pid) if number == rank]
    os.kill(victim, signal.SIGKILL)
    return seen + line
