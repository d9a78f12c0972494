"""The demonstration's trainings: the six models trained by flash_train, with and without flash, on
the last rows of a CSV file."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import host

WEATHER = host.ROOT / "data" / "seattle-weather.csv"

# Small networks, because a few years of days hold little to learn from. Learning rates and epochs
# were chosen on the validation part, and so that the demonstration takes less than five minutes.
MODELS: dict[str, dict[str, object]] = {
    "TFT": {"hidden-size": 16, "n-head": 4, "dropout": 0.3, "learning-rate": 3e-3, "epochs": 8},
    "Informer": {
        "hidden-size": 32,
        "n-head": 4,
        "dropout": 0.3,
        "learning-rate": 3e-3,
        "epochs": 4,
    },
    "Autoformer": {"hidden-size": 32, "n-head": 4, "dropout": 0.1, "epochs": 12},
    "FEDformer": {"hidden-size": 32, "n-head": 8, "dropout": 0.1, "epochs": 12},
    "PatchTST": {
        "hidden-size": 16,
        "linear-hidden-size": 32,
        "n-heads": 4,
        "encoder-layers": 2,
        "patch-len": 16,
        "stride": 3,
        "dropout": 0.5,
        "epochs": 8,
    },
    "iTransformer": {"hidden-size": 64, "d-ff": 128, "n-heads": 4, "dropout": 0.3, "epochs": 10},
}
TRAINING: dict[str, object] = {"batch-size": 64, "learning-rate": 1e-3, "seed": 1}
# Here flash attention makes a different model than the paper's; the demonstration shows both.
REPLACED = ("Autoformer", "FEDformer")
# These two also start their forecast from the mean of their input, which over a whole year says
# nothing about tomorrow, so their input has at most this many seasons.
SEASONS_OF_A_MEAN = 4


@dataclass(frozen=True)
class Task:
    """The data, the columns to forecast, and the sizes of the windows."""

    data: Path = WEATHER
    columns: tuple[str, ...] = ("temp_max", "temp_min")
    input_size: int = 365
    horizon: int = 14
    season: int = 7
    rows: int = 1500  # the last ones; more would take more than five minutes

    @property
    def unit(self) -> str:
        """The unit of the errors."""
        return "degrees Celsius" if self.data == WEATHER else "units of the column"

    @property
    def text(self) -> str:
        """A description for the console."""
        text = (
            f"{self.data.name}, columns {', '.join(self.columns)}: {self.horizon} rows forecast "
            f"from {self.input_size}"
        )
        fewer = self.past_of(REPLACED[0])
        if fewer == self.input_size:
            return text
        return f"{text},\nby {' and '.join(REPLACED)} from {fewer}"

    def past_of(self, model: str) -> int:
        """The number of input rows of this model."""
        most = SEASONS_OF_A_MEAN * self.season if model in REPLACED else self.input_size
        return min(most, self.input_size)


@dataclass(frozen=True)
class Run:
    """One training: flash_train's report and its forecast of the test part."""

    model: str
    attention: str
    report: dict[str, Any]
    forecast: list[dict[str, str]]

    @property
    def seconds(self) -> float:
        return self.report["training"]["seconds"]

    @property
    def training_bytes(self) -> int:
        """Peak of the process beyond what it held before the first step."""
        return self.report["memory_peak_bytes"] - self.report["memory_before_bytes"]

    @property
    def mae(self) -> dict[str, float]:
        """Mean absolute error of each column, in its unit."""
        return {name: row["model"] for name, row in self.report["test"]["mae_in_units"].items()}

    @property
    def losses(self) -> list[float]:
        """Of all epochs, training and validation."""
        names = ("train_loss", "validation_loss")
        return [epoch[name] for epoch in self.report["training"]["epochs"] for name in names]


@dataclass(frozen=True)
class Pair:
    """A model trained with and without flash from one seed: the same initial weights, order of
    windows and dropout masks."""

    flash: Run
    without: Run

    @property
    def model(self) -> str:
        return self.flash.model

    @property
    def runs(self) -> tuple[Run, Run]:
        return self.flash, self.without

    @property
    def largest_gap(self) -> float:
        """Largest difference of the losses of the two trainings in any epoch."""
        return max(abs(a - b) for a, b in zip(self.flash.losses, self.without.losses, strict=True))


def last_rows(task: Task, output: Path) -> Path:
    """The file itself, or a copy of its header and its last rows."""
    if not task.data.is_file():
        sys.exit(f"bench/demo.py: expected a CSV file at {task.data}, found none")
    lines = task.data.read_text().splitlines(keepends=True)
    if len(lines) - 1 <= task.rows:
        return task.data
    path = output / f"last_rows_of_{task.data.name}"
    path.write_text("".join([lines[0], *lines[-task.rows :]]))
    return path


def command(
    executable: Path, data: Path, task: Task, model: str, attention: str, stem: Path, threads: int
) -> list[str]:
    """The command line of flash_train; the names of the files that it writes begin with `stem`."""
    options = TRAINING | MODELS[model]
    return [
        str(executable),
        model,
        str(data),
        f"--target={','.join(task.columns)}",
        f"--input-size={task.past_of(model)}",
        f"--horizon={task.horizon}",
        f"--season={task.season}",
        *(f"--{name}={value}" for name, value in options.items()),
        f"--attention={attention}",
        f"--threads={threads}",
        f"--output={stem}.safetensors",
        f"--forecast-csv={stem}_forecast.csv",
        f"--report={stem}.json",
    ]


def train(
    executable: Path, data: Path, task: Task, model: str, attention: str, stem: Path, threads: int
) -> Run:
    """Runs flash_train, which prints its progress to the console."""
    call = command(executable, data, task, model, attention, stem, threads)
    status = subprocess.run(call, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        sys.exit(f"bench/demo.py: {' '.join(call)}\nended with status {status}")
    report = json.loads(stem.with_name(f"{stem.name}.json").read_text())
    with stem.with_name(f"{stem.name}_forecast.csv").open(newline="") as file:
        return Run(model, attention, report, list(csv.DictReader(file)))


def without_flash(model: str) -> str:
    """flash_train's name for the attention of a model without flash."""
    return "native" if model in REPLACED else "standard"


def train_all(
    build: Path, output: Path, task: Task, threads: int, models: tuple[str, ...] = tuple(MODELS)
) -> list[Pair]:
    """Trains every model with and without flash."""
    executable = build / "models" / "flash_train"
    if not executable.is_file():
        sys.exit(
            f"bench/demo.py: expected {executable}, found none; run `make build`, or name "
            "another CMake build directory with --build"
        )
    output.mkdir(parents=True, exist_ok=True)
    data = last_rows(task, output)
    print(f"{task.text}\n")
    pairs = []
    for model in models:
        runs = []
        for attention in ("flash", without_flash(model)):
            print(f"{model}, {attention} attention:", flush=True)
            stem = output / f"{model.lower()}_{attention}"
            runs.append(train(executable, data, task, model, attention, stem, threads))
        pairs.append(Pair(*runs))
    return pairs
