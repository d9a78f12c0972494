"""What was measured of the trainings on ETTh1, the JSON that keeps it, and the table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import measure
from plain_training import Errors

SIDES = ("neuralforecast", "ours")
# Of each side, one number an epoch.
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class TrainingResult:
    """One model trained from one seed by both sides, "ours" (flash_train) and "neuralforecast".

    Attributes:
        input_size: rows of the past.
        seconds: of every epoch of each side, validation included; epochs of one place took turns.
        best_epoch: the one that was kept, counted from 1.
        train_loss: mean over the steps of every epoch.
        validation: squared error after every epoch.
        test: errors of the weights of the best epoch over all test windows.
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
                side: [measure.rounded(x) for x in numbers] for side, numbers in row[name].items()
            }
        return row


def faster(results: list[TrainingResult]) -> tuple[float, float, float]:
    """neuralforecast's time over ours within one epoch each: lower quartile, median, upper one."""
    theirs, ours = ([x for r in results for x in r.seconds[side]] for side in SIDES)
    if len(ours) == 1:  # has no quartiles
        ratio = theirs[0] / ours[0]
        return ratio, ratio, ratio
    return measure.quartiles_of_ratio(theirs, ours)


def over_seeds(numbers: list[float], digits: int) -> str:
    """The mean, and behind it the least and the largest where there are several."""
    text = f"{statistics.mean(numbers):.{digits}f}"
    if len(numbers) == 1:
        return text
    return f"{text} ({min(numbers):.{digits}f}-{max(numbers):.{digits}f})"


def rows_of(results: list[TrainingResult]) -> list[list[str]]:
    """A row for each side of one model, over all of its seeds."""
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
                measure.seconds_text(
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
    """Markdown, models in the order in which they were trained."""
    header = ["model", "trained by", "L", "epochs", "an epoch", "faster", "quartiles"]
    header += ["best epoch", "test MSE", "test MAE"]
    rows = []
    for model in dict.fromkeys(result.model for result in results):
        rows += rows_of([result for result in results if result.model == model])
    return measure.table(header, rows, left=2)
