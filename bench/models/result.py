"""The measurement of a model at one shape, and the JSON row that keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.common.formatting import rounded
from bench.models.shapes import Shape

SHAPE_FIELDS = tuple(field.name for field in fields(Shape))


@dataclass(frozen=True)
class ModelResult:
    """A training step of both sides, which are "ours" and "neuralforecast".

    Attributes:
        rounds: number of timed steps of each side.
        seconds: median time of a step of each side.
        ratio: their time over ours, paired by round: lower quartile, median, upper quartile.
        difference: of the outputs without dropout, relative to the largest output, in nine windows
            of ten (`training_pair.difference`).
        bytes: peak memory of a step of each side; empty if it was not measured.
    """

    shape: Shape
    rounds: int
    seconds: dict[str, float]
    ratio: tuple[float, float, float]
    difference: float
    bytes: dict[str, int]

    @property
    def times_as_fast(self) -> float:
        return self.ratio[1]

    @property
    def memory_share(self) -> float | None:
        """Our peak over theirs."""
        return self.bytes["ours"] / self.bytes["neuralforecast"] if self.bytes else None

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self.shape),
            "flash": self.shape.flash,
            "rounds": self.rounds,
            "seconds": {side: rounded(x) for side, x in self.seconds.items()},
            "ratio": [rounded(x) for x in self.ratio],
            "difference": rounded(self.difference),
            "bytes": self.bytes,
        }


def from_row(row: dict[str, Any]) -> ModelResult:
    """The inverse of `ModelResult.row`."""
    return ModelResult(
        shape=Shape(**{name: row[name] for name in SHAPE_FIELDS}),
        rounds=row["rounds"],
        seconds=row["seconds"],
        ratio=tuple(row["ratio"]),
        difference=row["difference"],
        bytes=row["bytes"],
    )
