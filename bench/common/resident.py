"""Peak memory of a process: the growth of what the kernel keeps resident for it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path


def resident(field: str) -> int:
    """VmRSS, the resident memory, or VmHWM, its maximum so far; bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"expected {field} in /proc/self/status, found none")


def forget_the_past() -> None:
    """Returns freed memory to the kernel and resets VmHWM to what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
