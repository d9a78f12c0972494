"""A model of neuralforecast exported to ONNX, on one thread in ONNX Runtime.

Only .venv-neuralforecast has onnx and onnxruntime, so the functions that need them import them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# torch's exporter, from a graph of torch.export, and its predecessor, from a trace.
EXPORTERS = {"torch.export": True, "trace": False}
LONGEST_REASON = 160


class ForecastOfPast(nn.Module):
    """The model as a function of one tensor, its past; the other windows are as in `windows`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, past: Tensor) -> Tensor:
        windows = {"insample_y": past, "insample_mask": torch.ones_like(past)}
        windows |= {"futr_exog": None, "hist_exog": None, "stat_exog": None}
        return self.model.forward(windows)


class CannotRun(Exception):
    """Why there is no session."""


def reason_of(error: BaseException) -> str:
    """The first line of the innermost cause, which is what torch's exporters bury."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    shortened = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
    return f"{type(error).__name__}: {shortened}"


def export(model: nn.Module, past: Tensor, path: Path) -> str:
    """Writes the model for windows of this shape and returns the name of the exporter.

    Raises:
        CannotRun: no exporter can.
    """
    reasons = []
    for name, dynamo in EXPORTERS.items():
        try:
            torch.onnx.export(ForecastOfPast(model), (past,), path, dynamo=dynamo)
            return name
        except Exception as error:  # whatever the exporters raise
            reasons.append(f"{name}: {reason_of(error)}")
    raise CannotRun(f"cannot be exported: {'; '.join(reasons)}")


def session(path: Path) -> Any:
    """One thread, and denormals flushed as on the other sides.

    Raises:
        CannotRun: ONNX Runtime rejects the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no common base
        raise CannotRun(f"cannot be loaded: {reason_of(error)}") from error


@contextlib.contextmanager
def quiet() -> Any:
    """Without the warnings and the progress of the exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    output = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(output):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(output):
                yield
    finally:
        logging.disable(level)


def forecast(model: nn.Module, past: Tensor) -> Callable[[], Tensor]:
    """The forecast of `past` by the exported model; `model` must be in evaluation mode.

    Raises:
        CannotRun: the model cannot be exported, loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        export(model, past, path)
        run = session(path)
    feed = {run.get_inputs()[0].name: past.numpy()}

    def call() -> Tensor:
        return torch.from_numpy(run.run(None, feed)[0])

    try:
        call()
    except Exception as error:
        raise CannotRun(f"cannot run: {reason_of(error)}") from error
    return call
