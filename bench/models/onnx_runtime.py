"""A model of neuralforecast exported to ONNX, on one thread in ONNX Runtime.

Only .venv-neuralforecast has onnx and onnxruntime, so the functions that need them import them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.models import training_pair
from bench.models.shapes import Shape

# torch's exporter, from a graph of torch.export, and its predecessor, from a trace.
EXPORTERS = {"torch.export": True, "trace": False}
# torch.export unrolls an LSTM into its time steps, which takes minutes and makes a slow graph; a
# trace keeps the layer.
PREFERRED = {"TFT": "trace"}
# An export that takes longer is given up: it would dominate the time of the benchmark.
EXPORT_LIMIT_SECONDS = 60
LONGEST_REASON = 120


class CannotRun(Exception):
    """Why there is no forecast."""


class ForecastOfPast(nn.Module):
    """The model as a function of one tensor, its past; the other windows are as in `windows`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, past: Tensor) -> Tensor:
        windows = {"insample_y": past, "insample_mask": torch.ones_like(past)}
        windows |= {"futr_exog": None, "hist_exog": None, "stat_exog": None}
        return self.model.forward(windows)


def reason_of(error: BaseException) -> str:
    """The first line of the innermost cause, which torch's exporters wrap several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).strip().splitlines()[:1])
    shortened = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
    return f"{type(error).__name__}: {shortened}" if shortened else type(error).__name__


def reason_path(path: Path) -> Path:
    """Where the reason is, if there is no model at `path`."""
    return path.with_suffix(".reason")


def export_here(exporter: str, shape: Shape, path: Path) -> None:
    """Runs in the child process: writes the model, or why it cannot as `reason_path(path)`."""
    model = training_pair.original(shape).eval()  # its initial weights depend on its seed alone
    past = training_pair.windows(shape)[0]["insample_y"]
    try:
        torch.onnx.export(ForecastOfPast(model), (past,), path, dynamo=EXPORTERS[exporter])
    except Exception as error:  # the exporters raise whatever their parts raise
        reason_path(path).write_text(reason_of(error))


def attempt(script: Path, exporter: str, shape: Shape, path: Path) -> str:
    """Exports with `script` in a process of its own; why that failed, or an empty string.

    The exporters write pages of progress to the console, and may take any time.
    """
    command = [sys.executable, str(script), f"--export-with={exporter}", f"--export-to={path}"]
    command += [f"--shape={json.dumps(asdict(shape))}"]
    try:
        found = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=EXPORT_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done in {EXPORT_LIMIT_SECONDS} s"
    if found.returncode != 0:
        return f"the process ended with status {found.returncode}"
    reason = reason_path(path)
    if reason.exists():
        text = reason.read_text()
        reason.unlink()  # the next exporter has the same path
        return text
    return ""


def export(script: Path, shape: Shape, path: Path) -> None:
    """Writes the original of this shape with the first exporter that can.

    Raises:
        CannotRun: none can.
    """
    order = sorted(EXPORTERS, key=lambda name: name != PREFERRED.get(shape.model))
    reasons = {}
    for exporter in order:
        reasons[exporter] = attempt(script, exporter, shape, path)
        if not reasons[exporter]:
            return
    text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise CannotRun(f"cannot be exported: {text}")


def session(path: Path) -> Any:
    """One thread, and denormals flushed as on the other sides."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def forecast(script: Path, shape: Shape, past: Tensor) -> Callable[[], Tensor]:
    """The forecast of `past` by the exported original of this shape.

    Raises:
        CannotRun: the model cannot be exported, loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(script, shape, path)
        try:
            run = session(path)
            feed = {run.get_inputs()[0].name: past.numpy()}
            run.run(None, feed)
        except Exception as error:  # those of onnxruntime have no common base
            raise CannotRun(f"cannot run: {reason_of(error)}") from error
    return lambda: torch.from_numpy(run.run(None, feed)[0])
