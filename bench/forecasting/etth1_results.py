"""The results of the trainings on ETTh1, their JSON rows, and their table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from bench.common import formatting, timing
from bench.forecasting.plain_training import Errors

SIDES = ("neuralforecast", "ours")
# Seconds of every epoch, by side.
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class TrainingResult:
    """A model trained from one seed by both sides, "ours" (flash_train) and "neuralforecast".

    Attributes:
        input_size: input rows of a window.
        seconds: time of every epoch of each side, validation included; the sides alternate.
        best_epoch: the epoch whose weights are kept, counted from 1.
        train_loss: mean over the steps of every epoch.
        validation: mean squared error after every epoch.
        test: errors of the kept weights over all test windows.
    """

    model: str
    input_size: int
    seed: int
    seconds: Seconds
    best_epoch: dict[str, int]
    train_loss: dict[str, list[float]]
    validation: dict[str, list[float]]
    test: dict[str, Errors]

    @property
    def epochs(self) -> int:
        return len(self.seconds["ours"])

    def row(self) -> dict[str, Any]:
        """For JSON."""
        row = asdict(self)
        for name in ("seconds", "train_loss", "validation"):
            row[name] = {
                side: [formatting.rounded(x) for x in numbers]
                for side, numbers in row[name].items()
            }
        return row


def faster(results: list[TrainingResult]) -> tuple[float, float, float]:
    """neuralforecast's time over ours, paired by epoch: lower quartile, median, upper quartile."""
    theirs, ours = ([x for r in results for x in r.seconds[side]] for side in SIDES)
    if len(ours) == 1:  # too few for quartiles
        ratio = theirs[0] / ours[0]
        return ratio, ratio, ratio
    return timing.quartiles_of_ratio(theirs, ours)


def over_seeds(numbers: list[float], digits: int) -> str:
    """The mean, with the range in parentheses if there are several seeds."""
    text = f"{statistics.mean(numbers):.{digits}f}"
    if len(numbers) == 1:
        return text
    return f"{text} ({min(numbers):.{digits}f}-{max(numbers):.{digits}f})"


def rows_of(results: list[TrainingResult]) -> list[list[str]]:
    """A row per side of one model, over all seeds."""
    low, median, high = faster(results)
    rows = []
    for side in SIDES:
        own = side == "ours"
        rows.append(
            [
                results[0].model,
                "flash_train" if own else side,
                str(results[0].input_size),
                str(results[0].epochs),
                formatting.seconds_text(
                    statistics.median(x for r in results for x in r.seconds[side])
                ),
                f"{median:.2f}x" if own else "",
                f"{low:.2f}-{high:.2f}" if own else "",
                ", ".join(str(r.best_epoch[side]) for r in results),
                over_seeds([r.test[side].mse for r in results], 4),
                over_seeds([r.test[side].mae for r in results], 4),
            ]
        )
    return rows


def table(results: list[TrainingResult]) -> str:
    """A Markdown table, models in the order of their trainings."""
    header = ["model", "trained by", "L", "epochs", "an epoch", "faster", "quartiles"]
    header += ["best epoch", "test MSE", "test MAE"]
    rows = []
    for model in dict.fromkeys(result.model for result in results):
        rows += rows_of([result for result in results if result.model == model])
    return formatting.table(header, rows, left=2)
