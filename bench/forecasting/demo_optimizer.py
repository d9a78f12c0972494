"""The demonstration's training step in Python: what fused Adam saves."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.common import formatting, timing
from bench.models import shapes, training_pair
from bench.models.shapes import Shape

ROUNDS = 5
LENGTH = shapes.LENGTHS[0]


@dataclass(frozen=True)
class Row:
    """Seconds of a training step of one model with plain and with fused Adam."""

    shape: Shape
    plain: float
    fused: float
    ratio: float


def measure(shape: Shape) -> Row:
    """Times both in turns on one model."""
    model, inputs = training_pair.ours(shape), training_pair.windows(shape)
    steps = {
        "plain": training_pair.Step(model, *inputs),
        "fused": training_pair.Step(model, *inputs, fused=True),
    }
    times = timing.interleaved(steps, ROUNDS)
    plain, fused = (statistics.median(times[name]) for name in ("plain", "fused"))
    return Row(shape, plain, fused, timing.median_ratio(times["plain"], times["fused"]))


def measure_all(models: tuple[str, ...]) -> list[Row]:
    """The models with their default sizes, batch 32, at the shortest input."""
    plan = shapes.plan(models, (LENGTH,), shapes.SERIES[:1])
    return [measure(shape) for shape in plan]


def table(rows: list[Row]) -> str:
    """One row per model."""
    cells = [
        [
            row.shape.model,
            formatting.seconds_text(row.plain),
            formatting.seconds_text(row.fused),
            f"{row.ratio:.2f}x",
        ]
        for row in rows
    ]
    return formatting.table(["model", "Adam", "Adam, fused=True", "faster"], cells)


def show(models: tuple[str, ...]) -> None:
    """Measures and prints."""
    print(
        "forward, backward and torch.optim.Adam, batch 32, default sizes. Adam(..., fused=True) "
        "updates\nparameters and moments in one pass; flash_train's own Adam does so too.\n"
    )
    print(table(measure_all(models)), flush=True)
