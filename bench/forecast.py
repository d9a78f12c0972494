"""The second half of the demonstration: PatchTST trained by flash_train with each attention."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import measure
import plot

DATA = measure.ROOT / "data" / "seattle-weather.csv"
COLUMNS = ("temp_max", "temp_min")
TITLES = {"temp_max": "highest temperature of the day", "temp_min": "lowest temperature of the day"}
# A year of past, two weeks ahead; the rest is flash_train's default for daily tables.
SETTINGS = {"input-size": 365, "horizon": 14, "epochs": 8, "seed": 1}


@dataclass(frozen=True)
class Run:
    """One training: what flash_train reported, and its forecast of the test part."""

    attention: str
    report: dict[str, Any]
    forecast: list[dict[str, str]]

    @property
    def training_bytes(self) -> int:
        """Growth of the process from before the first step to its peak."""
        return self.report["memory_peak_bytes"] - self.report["memory_before_bytes"]


def train(build: Path, output: Path, threads: int, attention: str) -> Run:
    """Runs flash_train, whose progress goes to the console."""
    executable = build / "models" / "flash_train"
    if not executable.is_file():
        sys.exit(
            f"bench/demo.py: expected {executable}, found none; run `make build`, or give the "
            "CMake build directory by --build"
        )
    output.mkdir(parents=True, exist_ok=True)
    report = output / f"{attention}.json"
    forecast = output / f"{attention}_forecast.csv"
    command = [
        str(executable),
        str(DATA),
        f"--columns={','.join(COLUMNS)}",
        *(f"--{name}={value}" for name, value in SETTINGS.items()),
        f"--attention={attention}",
        f"--threads={threads}",
        f"--output={output / attention}.safetensors",
        f"--forecast-csv={forecast}",
        f"--report={report}",
    ]
    print(f"{attention} attention:", flush=True)
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        sys.exit(f"bench/demo.py: {executable} ended with status {status}")
    with forecast.open(newline="") as file:
        return Run(attention, json.loads(report.read_text()), list(csv.DictReader(file)))


def train_both(build: Path, output: Path, threads: int) -> list[Run]:
    """From the same seed: the same weights, order of windows and dropout."""
    names = ", ".join(COLUMNS)
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    print(f"{DATA.name}, columns {names}; {settings}\n")
    return [train(build, output, threads, attention) for attention in ("flash", "standard")]


def epoch_pairs(runs: list[Run]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The reports of the two trainings, epoch by epoch."""
    flash, standard = (run.report["training"]["epochs"] for run in runs)
    return list(zip(flash, standard, strict=True))


def largest_gap(runs: list[Run]) -> float:
    """How far the losses of the two trainings are ever apart."""
    losses = ("train_loss", "validation_loss")
    return max(abs(a[loss] - b[loss]) for a, b in epoch_pairs(runs) for loss in losses)


def print_runs(runs: list[Run]) -> None:
    """Losses, cost and test errors side by side."""
    flash, standard = (run.report for run in runs)
    print(
        f"\n{flash['parameters']} parameters, attention over {flash['patches']} patches, "
        f"{flash['threads']} thread(s). Losses, epoch by epoch:\n"
    )
    header = ["epoch", "train: flash", "standard", "validation: flash", "standard"]
    rows = []
    for a, b in epoch_pairs(runs):
        losses = (a["train_loss"], b["train_loss"], a["validation_loss"], b["validation_loss"])
        rows.append([str(a["epoch"]), *(f"{loss:.6f}" for loss in losses)])
    print(measure.table(header, rows, left=0))
    print(f"\nThe largest difference between the two trainings is {largest_gap(runs):.0e}.")

    print("\nCost of the training:\n")
    rows = [
        [
            run.attention,
            measure.seconds_text(run.report["training"]["seconds"]),
            measure.bytes_text(run.training_bytes),
            measure.bytes_text(run.report["memory_peak_bytes"]),
        ]
        for run in runs
    ]
    header = ["attention", "time", "peak memory of training", "of the whole process"]
    print(measure.table(header, rows))

    print(
        f"\nMean absolute error on {flash['test']['windows']} test windows of "
        f"{SETTINGS['horizon']} days, in degrees Celsius:\n"
    )
    header = ["column", "PatchTST, flash", "PatchTST, standard", "naive", "seasonal naive (7 days)"]
    rows = []
    for column in COLUMNS:
        errors = flash["test"]["mae_in_units"][column]
        other = standard["test"]["mae_in_units"][column]["model"]
        values = (errors["model"], other, errors["naive"], errors["seasonal_naive"])
        rows.append([column, *(f"{value:.3f}" for value in values)])
    print(measure.table(header, rows))
    model, naive = flash["test"]["model"]["mae"], flash["test"]["naive"]["mae"]
    change = 100 * (1 - model / naive)
    verdict = "smaller" if change > 0 else "LARGER"
    print(
        f"\nOver both columns the error is {abs(change):.0f}% {verdict} than the naive forecast's."
    )


def draw(runs: list[Run], output: Path) -> Path:
    """The forecast of the test part against the truth, one panel per column."""
    run = next(run for run in runs if run.attention == "flash")
    days = SETTINGS["horizon"]
    figure, axes = plot.grid(
        len(COLUMNS),
        1,
        f"Weather of Seattle: PatchTST's forecasts, {days} days at a time",
        "test part, never seen in training; a new forecast starts at each gap. Data: NOAA",
        width=11.0,
    )
    for panel, column in zip(axes[:, 0], COLUMNS, strict=True):
        rows = [row for row in run.forecast if row["column"] == column]
        time = [datetime.strptime(row["time"], "%Y/%m/%d") for row in rows]
        truth = [float(row["truth"]) for row in rows]
        panel.plot(time, truth, color="0.25", linewidth=1.2, label="measured")
        for start in range(0, len(rows), days):
            part = slice(start, start + days)
            values = [float(row["forecast"]) for row in rows[part]]
            label = "forecast" if start == 0 else None
            panel.plot(time[part], values, color="#0072B2", linewidth=2.0, label=label)
        errors = run.report["test"]["mae_in_units"][column]
        panel.set_title(
            f"{TITLES[column]}: mean error {errors['model']:.2f} °C, naive forecast "
            f"{errors['naive']:.2f} °C",
            fontsize=11,
        )
        panel.set_xlabel("day")
        panel.set_ylabel("temperature (°C)")
        panel.grid(True, alpha=0.3)
        panel.margins(x=0.01)
        panel.legend(loc="upper right")
    return plot.save(figure, output / "forecast.png")
