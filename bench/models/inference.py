"""The time of a forecast beside neuralforecast's, in torch and in ONNX Runtime."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import timing
from bench.models import onnx_runtime, training_pair
from bench.models.result import InferenceResult
from bench.models.shapes import BUDGET_SECONDS, Shape

Forecast = Callable[[], Tensor]
NAMES = {"neuralforecast": "neuralforecast", "onnx": "ONNX Runtime"}


def eager(model: Any, inputs: training_pair.Windows) -> Forecast:
    """The forward pass without autograd."""
    model.eval()

    def call() -> Tensor:
        with torch.inference_mode():
            return model.forward(inputs)

    return call


def onnx(
    script: Path, shape: Shape, inputs: training_pair.Windows, expected: Tensor
) -> tuple[Forecast, float]:
    """The forecast in ONNX Runtime, and its difference from `expected`.

    Raises:
        CannotRun: it cannot run, or its output is another one.
    """
    call = onnx_runtime.forecast(script, shape, inputs["insample_y"])
    difference = training_pair.largest_difference(call(), expected)
    if not difference < training_pair.LARGEST_DIFFERENCE:
        raise onnx_runtime.CannotRun(
            f"cannot be compared: its output differs from neuralforecast's by {difference:.2g} of "
            "the largest output"
        )
    return call, difference


def measure(shape: Shape, rounds: int, script: Path, known: dict[str, str]) -> InferenceResult:
    """Times all sides in turns.

    `script` exports the model in a process of its own (`onnx_runtime.export`). `known` has the
    models that an earlier shape could not export, and why; they are not tried again.
    """
    pair, difference = training_pair.checked_pair(shape)
    inputs, _ = training_pair.windows(shape)
    calls = {side: eager(model, inputs) for side, model in pair.items()}
    differences = {"neuralforecast": difference}
    try:
        if shape.model in known:
            raise onnx_runtime.CannotRun(known[shape.model])
        expected = calls["neuralforecast"]()
        calls["onnx"], differences["onnx"] = onnx(script, shape, inputs, expected)
    except onnx_runtime.CannotRun as error:
        known[shape.model] = str(error)
    times = timing.interleaved(calls, rounds, BUDGET_SECONDS)
    return InferenceResult(
        shape=shape,
        rounds=len(times["ours"]),
        seconds={side: statistics.median(samples) for side, samples in times.items()},
        ratio={
            side: timing.quartiles_of_ratio(times[side], times["ours"])
            for side in times
            if side != "ours"
        },
        difference=differences,
        missing={} if "onnx" in calls else {"onnx": known[shape.model]},
    )
