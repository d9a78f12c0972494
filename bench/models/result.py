"""The measurements of a model at one shape, and the JSON rows that keep them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bench.common.formatting import rounded
from bench.models.shapes import Shape

Quartiles = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""

SHAPE_FIELDS = tuple(field.name for field in fields(Shape))


def shape_of(row: dict[str, Any]) -> Shape:
    """The shape of a row."""
    return Shape(**{name: row[name] for name in SHAPE_FIELDS})


def rounded_values(values: dict[str, float]) -> dict[str, float]:
    return {name: rounded(x) for name, x in values.items()}


def rounded_quartiles(ratios: dict[str, Quartiles]) -> dict[str, list[float]]:
    return {name: [rounded(x) for x in quartiles] for name, quartiles in ratios.items()}


def quartiles_of(ratios: dict[str, list[float]]) -> dict[str, Quartiles]:
    """The inverse of `rounded_quartiles`."""
    return {name: (low, median, high) for name, (low, median, high) in ratios.items()}


@dataclass(frozen=True)
class Floor:
    """The least time of a step: its operations at the peak of the core.

    Attributes:
        flops: operations of the original's forward and backward (`flops.count`).
        fma: FLOP/s of the core's multiply-adds alone, median over the rounds of this shape.
        over: our time over the floor, paired by round, by optimiser: "ours" and "fused".
    """

    flops: int
    fma: float
    over: dict[str, Quartiles]

    @property
    def seconds(self) -> float:
        return self.flops / self.fma

    def row(self) -> dict[str, Any]:
        """For JSON."""
        over = rounded_quartiles(self.over)
        return {"flops": self.flops, "fma_gflops": rounded(self.fma / 1e9), "over": over}


def floor_of(row: dict[str, Any]) -> Floor:
    """The inverse of `Floor.row`."""
    return Floor(row["flops"], row["fma_gflops"] * 1e9, quartiles_of(row["over"]))


@dataclass(frozen=True)
class ModelResult:
    """A training step of both sides, which are "ours" and "neuralforecast".

    Attributes:
        rounds: number of timed steps of each side.
        seconds: median time of a step of each side with plain Adam, and as "fused" of ours with
            `torch.optim.Adam(..., fused=True)`.
        ratio: their time over ours, paired by round.
        difference: of the outputs without dropout, relative to the largest output, in nine windows
            of ten (`training_pair.difference`).
        bytes: peak memory of a step of each side; empty if it was not measured.
        fused: our time with plain Adam over that with fused Adam; None in older records.
        floor: of the step; None in older records.
        threads: our time on one thread over that on two, both with fused Adam; None if it was not
            measured.
    """

    shape: Shape
    rounds: int
    seconds: dict[str, float]
    ratio: Quartiles
    difference: float
    bytes: dict[str, int]
    fused: Quartiles | None = None
    floor: Floor | None = None
    threads: Quartiles | None = None

    @property
    def times_as_fast(self) -> float:
        return self.ratio[1]

    @property
    def memory_share(self) -> float | None:
        """Our peak over theirs."""
        return self.bytes["ours"] / self.bytes["neuralforecast"] if self.bytes else None

    def row(self) -> dict[str, Any]:
        """For JSON."""
        row = {
            **asdict(self.shape),
            "flash": self.shape.flash,
            "rounds": self.rounds,
            "seconds": rounded_values(self.seconds),
            "ratio": [rounded(x) for x in self.ratio],
            "difference": rounded(self.difference),
            "bytes": self.bytes,
        }
        later = {"fused": self.fused, "threads": self.threads}
        row |= rounded_quartiles({name: x for name, x in later.items() if x is not None})
        return row | ({} if self.floor is None else {"floor": self.floor.row()})


def from_row(row: dict[str, Any]) -> ModelResult:
    """The inverse of `ModelResult.row`."""
    later = quartiles_of({name: row[name] for name in ("fused", "threads") if name in row})
    return ModelResult(
        shape=shape_of(row),
        rounds=row["rounds"],
        seconds=row["seconds"],
        ratio=tuple(row["ratio"]),
        difference=row["difference"],
        bytes=row["bytes"],
        floor=floor_of(row["floor"]) if "floor" in row else None,
        **later,
    )


@dataclass(frozen=True)
class InferenceResult:
    """A forecast of ours, of neuralforecast's and of its export in ONNX Runtime ("onnx").

    Attributes:
        rounds: number of timed forecasts of each side.
        seconds: median time of a forecast of each side that runs.
        ratio: the time of each other side over ours, paired by round.
        difference: of the outputs of each other side from ours, as in `ModelResult`.
        missing: why a side does not run.
    """

    shape: Shape
    rounds: int
    seconds: dict[str, float]
    ratio: dict[str, Quartiles]
    difference: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self.shape),
            "rounds": self.rounds,
            "seconds": rounded_values(self.seconds),
            "ratio": rounded_quartiles(self.ratio),
            "difference": rounded_values(self.difference),
            **({"missing": self.missing} if self.missing else {}),
        }


def inference_from_row(row: dict[str, Any]) -> InferenceResult:
    """The inverse of `InferenceResult.row`."""
    return InferenceResult(
        shape=shape_of(row),
        rounds=row["rounds"],
        seconds=row["seconds"],
        ratio=quartiles_of(row["ratio"]),
        difference=row["difference"],
        missing=row.get("missing", {}),
    )
