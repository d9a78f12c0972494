"""Tables and picture of the trainings of `demo_training.py`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from bench.common import formatting
from bench.forecasting.demo_training import REPLACED, Pair, Task
from bench.report import plot

TIME_FORMATS = ("%Y/%m/%d", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y/%m/%d %H:%M")
NAIVE = {"naive": "naive: the last value", "seasonal_naive": "seasonal naive"}


def over_naive(pair: Pair, attention: int) -> str:
    """Change of the error over all columns against the naive forecast's."""
    test = pair.runs[attention].report["test"]
    change = 100 * (1 - test["model"]["mae"] / test["naive"]["mae"])
    return f"{abs(change):.0f}% {'less' if change > 0 else 'MORE'}"


def error_table(pairs: list[Pair], task: Task) -> str:
    """Mean absolute error of each model and column, and of the naive forecasts."""
    header = ["model"]
    for column in task.columns:
        header += [f"{column}: flash", "without"]
    header += ["against naive: flash", "without"]
    rows = []
    for pair in pairs:
        row = [pair.model + ("*" if pair.model in REPLACED else "")]
        for column in task.columns:
            row += [f"{run.mae[column]:.3f}" for run in pair.runs]
        rows.append([*row, *(over_naive(pair, attention) for attention in (0, 1))])
    errors = pairs[0].flash.report["test"]["mae_in_units"]
    for key, name in NAIVE.items():
        row = [name + (f" ({task.season} rows)" if key == "seasonal_naive" else "")]
        for column in task.columns:
            row += [f"{errors[column][key]:.3f}"] * 2
        rows.append([*row, "", ""])
    return formatting.table(header, rows)


def cost_table(pairs: list[Pair]) -> str:
    """Time and memory of the trainings, and the largest difference of their losses."""
    header = ["model", "parameters", "time: flash", "without", "faster", "memory: flash", "without"]
    header += ["less", "losses differ by"]
    rows = []
    for pair in pairs:
        seconds = [run.seconds for run in pair.runs]
        sizes = [run.training_bytes for run in pair.runs]
        gap = "another model" if pair.model in REPLACED else f"{pair.largest_gap:.0e}"
        rows.append(
            [
                pair.model + ("*" if pair.model in REPLACED else ""),
                str(pair.flash.report["parameters"]),
                *map(formatting.seconds_text, seconds),
                f"{seconds[1] / seconds[0]:.1f}x",
                *map(formatting.bytes_text, sizes),
                f"{sizes[1] / sizes[0]:.1f}x",
                gap,
            ]
        )
    return formatting.table(header, rows)


def print_pairs(pairs: list[Pair], task: Task) -> None:
    """Prints the errors and the costs."""
    test = pairs[0].flash.report["test"]
    print(
        f"\nMean absolute error on {test['windows']} test windows of {task.horizon} rows, in "
        f"{task.unit}:\n"
    )
    print(error_table(pairs, task))
    print("\nCost of the training; memory is the peak beyond what the process held before it:\n")
    print(cost_table(pairs))
    if any(pair.model in REPLACED for pair in pairs):
        print(
            "\n* has no softmax attention: without flash it uses its own mechanism, "
            "auto-correlation or\n  Fourier blocks, and with flash exact attention instead. "
            "These are two models."
        )


def time_axis(texts: list[str]) -> list[datetime] | list[int]:
    """The texts as dates, or row numbers if they are no dates."""
    for form in TIME_FORMATS:
        try:
            return [datetime.strptime(text, form) for text in texts]
        except ValueError:
            continue
    return list(range(len(texts)))


def draw(pairs: list[Pair], task: Task, output: Path) -> Path:
    """Each model's forecasts of the first column in the test part, with the truth."""
    column = task.columns[0]
    figure, axes = plot.grid(
        -(-len(pairs) // 2),
        2,
        f"{task.data.stem}, {column}: forecasts of {task.horizon} rows at a time",
        "test part, never seen in training; a new forecast starts at each gap"
        + (". Data: NOAA" if task.data.name == "seattle-weather.csv" else ""),
        width=8.0,
    )
    for panel in list(axes.flat)[len(pairs) :]:
        panel.axis("off")
    for panel, pair in zip(axes.flat, pairs, strict=False):
        rows = [row for row in pair.flash.forecast if row["column"] == column]
        time = time_axis([row["time"] for row in rows])
        truth = [float(row["truth"]) for row in rows]
        panel.plot(time, truth, color="0.25", linewidth=1.2, label="measured")
        for start in range(0, len(rows), task.horizon):
            part = slice(start, start + task.horizon)
            values = [float(row["forecast"]) for row in rows[part]]
            label = "forecast" if start == 0 else None
            panel.plot(time[part], values, color="#0072B2", linewidth=2.0, label=label)
        errors = pair.flash.report["test"]["mae_in_units"][column]
        panel.set_title(
            f"{pair.model}: mean error {errors['model']:.3g}, naive {errors['naive']:.3g}",
            fontsize=11,
        )
        panel.grid(True, alpha=0.3)
        panel.margins(x=0.01)
        panel.legend(loc="upper right")
    return plot.save(figure, output / "forecast.png")
