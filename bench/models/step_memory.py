"""Peak memory of a training step: the growth of a fresh process's resident memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.common.resident import forget_the_past, resident
from bench.models import training_pair
from bench.models.shapes import Shape

SIDES = ("ours", "neuralforecast")
# From the second step on, Adam's averages exist from the beginning.
STEPS = 2


def step_memory(model: Any, shape: Shape) -> int:
    """Peak of the process over `STEPS` steps beyond what it held before them, in bytes.

    It includes activations, gradients and Adam's state, but not parameters and windows. A step on a
    single window runs first, to load the code and tables that are loaded on first use.
    """
    training_pair.Step(model, *training_pair.windows(shape, batch=1))()
    step = training_pair.Step(model, *training_pair.windows(shape))
    step.optimizer.zero_grad(set_to_none=True)
    forget_the_past()
    before = resident("VmRSS")
    for _ in range(STEPS):
        step()
    return resident("VmHWM") - before


def measure_here(side: str, shape: Shape) -> None:
    """Runs in the child process: prints the bytes as JSON."""
    model = training_pair.ours(shape) if side == "ours" else training_pair.original(shape)
    print(json.dumps({"bytes": step_memory(model, shape)}))


def measure(script: Path, shape: Shape) -> dict[str, int]:
    """Bytes of each side, which `script` measures in a process of its own."""
    found = {}
    for side in SIDES:
        command = [sys.executable, str(script), f"--memory-of={side}"]
        command += [f"--shape={json.dumps(asdict(shape))}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if output.returncode != 0:
            sys.exit(
                f"bench/models/compare.py: memory of {side} ended with status {output.returncode}"
            )
        found[side] = json.loads(output.stdout.splitlines()[-1])["bytes"]
    return found
