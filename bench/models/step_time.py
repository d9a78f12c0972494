"""The time of a training step: beside neuralforecast's, beside the floor, and on two threads."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flash_attention
import torch

from bench.attention import peak
from bench.common import host, timing
from bench.models import flops, training_pair
from bench.models.result import Floor, Quartiles
from bench.models.shapes import BUDGET_SECONDS, Shape
from bench.models.training_pair import Step

FMA = "peak: fma"
FMA_AFTER = "peak: fma after"


@dataclass(frozen=True)
class Times:
    """Seconds of each candidate, one sample per round, and the peak of the core around ours.

    Attributes:
        seconds: of "ours" and "neuralforecast" with plain Adam, and of "fused", ours with fused.
        peak: seconds of the multiply-adds of `probe`.
    """

    seconds: dict[str, list[float]]
    peak: list[float]
    probe: peak.Probe

    @property
    def rounds(self) -> int:
        return len(self.peak)

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(samples) for name, samples in self.seconds.items()}

    def ratio(self, slow: str, fast: str) -> Quartiles:
        return timing.quartiles_of_ratio(self.seconds[slow], self.seconds[fast])

    def floor(self, operations: int) -> Floor:
        """How far our steps are from `operations` at the peak of their rounds."""
        floors = [operations / self.probe.rate(seconds) for seconds in self.peak]
        over = {
            name: timing.quartiles_of_ratio(self.seconds[name], floors)
            for name in ("ours", "fused")
        }
        return Floor(operations, self.probe.rate(statistics.median(self.peak)), over)


def core_peak(build: Path) -> peak.Probe:
    """Multiply-adds of float32 at the instruction set of our kernels; `build` has the library."""
    active = flash_attention.build_info().active
    if active not in host.ISAS:
        sys.exit(
            f"bench/models/compare.py: expected kernels of one of {', '.join(host.ISAS)}, whose "
            f"peak can be measured, got {active}; unset FLASH_ATTENTION_ISA, or use a CPU with AVX2"
        )
    return peak.fma(peak.load(build), "float32", active)


def steps(shape: Shape, pair: dict[str, Any]) -> dict[str, Step]:
    """The candidates: a step of each side, and ours with fused Adam."""
    inputs = training_pair.windows(shape)
    return {
        "ours": Step(pair["ours"], *inputs),
        "fused": Step(pair["ours"], *inputs, fused=True),
        "neuralforecast": Step(pair["neuralforecast"], *inputs),
    }


def in_turns(steps: dict[str, Step], probe: peak.Probe, rounds: int) -> Times:
    """Times the candidates in turns; the peak right before and right after our two steps."""
    own = {name: steps[name] for name in ("ours", "fused")}
    calls: dict[str, Callable[[], object]] = {FMA: probe.call, **own, FMA_AFTER: probe.call}
    times = timing.interleaved(calls | steps, rounds, BUDGET_SECONDS)
    around = zip(times.pop(FMA), times.pop(FMA_AFTER), strict=True)
    return Times(times, [statistics.mean(pair) for pair in around], probe)


def needed(step: Step) -> int:
    """Operations of forward and backward."""
    return flops.count(step.gradients)


def two_threads(step: Step, rounds: int) -> Quartiles | None:
    """Time of a step on one thread over that on two, in turns; None without a second core."""
    if len(host.CORES) < 2:
        return None

    def on(count: int) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(count)
            step()

        return call

    # The second thread inherits the cores that the first one may use when it starts.
    host.pin(2)
    try:
        times = timing.interleaved({"one": on(1), "two": on(2)}, rounds, BUDGET_SECONDS)
    finally:
        host.pin(1)
    return timing.quartiles_of_ratio(times["one"], times["two"])
