"""The time of a forecast beside neuralforecast's, in torch and in ONNX Runtime."""

from __future__ import annotations

import statistics
from collections.abc import Callable
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


def sides(
    own: Any, theirs: torch.nn.Module, inputs: training_pair.Windows
) -> tuple[dict[str, Forecast], dict[str, str]]:
    """The forecast of each side that runs, ours first, and why the others do not."""
    found = {"ours": eager(own, inputs), "neuralforecast": eager(theirs, inputs)}
    try:
        found["onnx"] = onnx_runtime.forecast(theirs, inputs["insample_y"])
    except onnx_runtime.CannotRun as error:
        return found, {"onnx": str(error)}
    return found, {}


def measure(shape: Shape, rounds: int) -> InferenceResult:
    """Times all sides in turns."""
    pair, difference = training_pair.checked_pair(shape)
    inputs, _ = training_pair.windows(shape)
    calls, missing = sides(pair["ours"], pair["neuralforecast"], inputs)
    differences = {"neuralforecast": difference}
    if "onnx" in calls:
        outputs = [calls[side]() for side in ("onnx", "neuralforecast")]
        differences["onnx"] = training_pair.largest_difference(*outputs)
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
        missing=missing,
    )
