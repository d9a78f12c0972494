"""Peak memory of a training step: what it raises the resident memory of a fresh process by."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import model_pair
from model_shapes import Shape

SIDES = ("ours", "neuralforecast")
# The second step has Adam's averages from its beginning, as all later ones.
STEPS = 2


def resident(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, the most that ever was; bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"expected {field} in /proc/self/status, found none")


def forget_the_past() -> None:
    """Gives freed memory back to the kernel and lets VmHWM start at what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def step_memory(model: Any, shape: Shape) -> int:
    """Peak of the process over `STEPS` steps beyond what it holds before, in bytes.

    Parameters and windows are there before; activations, gradients and what Adam keeps are not. One
    step on a single window pays for code and tables that are loaded when they are first used.
    """
    model_pair.Step(model, *model_pair.windows(shape, batch=1))()
    step = model_pair.Step(model, *model_pair.windows(shape))
    step.optimizer.zero_grad(set_to_none=True)
    forget_the_past()
    before = resident("VmRSS")
    for _ in range(STEPS):
        step()
    return resident("VmHWM") - before


def measure_here(side: str, shape: Shape) -> None:
    """In the child: prints the bytes."""
    model = model_pair.ours(shape) if side == "ours" else model_pair.original(shape)
    print(json.dumps({"bytes": step_memory(model, shape)}))


def measure(script: Path, shape: Shape) -> dict[str, int]:
    """Bytes of either side, each in a process that `script` starts for it alone."""
    found = {}
    for side in SIDES:
        command = [sys.executable, str(script), f"--memory-of={side}"]
        command += [f"--shape={json.dumps(asdict(shape))}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if output.returncode != 0:
            sys.exit(f"bench/models.py: memory of {side} ended with status {output.returncode}")
        found[side] = json.loads(output.stdout.splitlines()[-1])["bytes"]
    return found
