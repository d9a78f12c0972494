"""The measurement of one point, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.common.formatting import bytes_text, rounded, seconds_text, table
from bench.distributed.points import WANTED_RATIO, Point

Quartiles = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""


@dataclass(frozen=True)
class Result:
    """One point.

    Attributes:
        seconds: of the forward and of the backward, medians over the rounds of the slowest process.
        spread: quartiles of the time of both.
        alone: the same call on one process with as many threads as cores: seconds, bytes at the
            peak, and the seconds that the model predicts.
        ratio: time over that of one process, quartiles over rounds in turns; None if not compared.
        memory: bytes at the peak of the process that has most.
        error: the largest difference from float64, relative to the row, over some rows.
        predicted: seconds and bytes by the cost model.
    """

    point: Point
    cores: int
    seconds: tuple[float, float]
    spread: Quartiles
    memory: int
    error: dict[str, float]
    predicted: tuple[float, float]
    alone: tuple[float, int, float] | None = None
    ratio: Quartiles | None = None

    @property
    def total(self) -> float:
        return self.spread[1]

    @property
    def is_judged(self) -> bool:
        """Processes that share cores cannot be as fast as one process with all of them."""
        return self.ratio is not None and self.point.processes <= self.cores

    @property
    def verdict(self) -> str:
        if not self.is_judged:
            return "-"
        assert self.ratio is not None
        return "pass" if self.ratio[1] <= WANTED_RATIO else "SHORTFALL"

    def row(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"point": asdict(self.point), "verdict": self.verdict}
        for name in ("cores", "seconds", "spread", "memory", "predicted", "alone", "ratio"):
            value = getattr(self, name)
            is_several = isinstance(value, tuple)
            found[name] = [rounded(x) for x in value] if is_several else value
        return found | {"error": {name: rounded(x) for name, x in self.error.items()}}

    def line(self) -> str:
        """For the console, as soon as it is measured."""
        text = f"{self.point.label}: {seconds_text(self.total)}"
        if self.ratio is not None:
            text += f", {self.ratio[1]:.3f}x of one process"
        text += f"; predicted {seconds_text(self.predicted[0])}"
        text += f"; {bytes_text(self.memory)} per process"
        worst = max(self.error, key=lambda name: self.error[name])
        return f"{text}; error {self.error[worst]:.1e} ({worst})"


def _name(point: Point) -> list[str]:
    return [f"{point.length:,}", point.mask, str(point.processes)]


def times(results: Sequence[Result]) -> str:
    """Time beside one process and beside the model."""
    header = ["L", "mask", "processes", "forward", "backward", "both", "quartiles", "predicted"]
    header += ["one process", "predicted", "ratio", "quartiles", f"at most {WANTED_RATIO:g}x"]
    rows = []
    for r in results:
        low, median, high = r.spread
        row = [*_name(r.point), *map(seconds_text, r.seconds), seconds_text(median)]
        row += [f"{seconds_text(low)} - {seconds_text(high)}", seconds_text(r.predicted[0])]
        if r.alone is None:
            row += ["-", "-"]
        else:
            row += [seconds_text(r.alone[0]), seconds_text(r.alone[2])]
        if r.ratio is None:
            row += ["-", "-"]
        else:
            row += [f"{r.ratio[1]:.3f}x", f"{r.ratio[0]:.2f}-{r.ratio[2]:.2f}"]
        rows.append([*row, r.verdict])
    return table(header, rows, left=2)


def memory_and_errors(results: Sequence[Result]) -> str:
    """Memory beside one process and beside the model, and errors."""
    header = ["L", "mask", "processes", "memory", "predicted", "one process", "share"]
    header += ["error of out", "d_query", "d_key", "d_value"]
    rows = []
    for r in results:
        row = [*_name(r.point), bytes_text(r.memory), bytes_text(r.predicted[1])]
        if r.alone is None:
            row += ["-", "-"]
        else:
            row += [bytes_text(r.alone[1]), f"{r.memory / r.alone[1]:.2f}x"]
        rows.append([*row, *(f"{error:.1e}" for error in r.error.values())])
    return table(header, rows, left=2)
