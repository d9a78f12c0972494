"""Runs flash_train for the tests of its command line and its files."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]

# Networks that train in a second, with little dropout so that a few steps suffice.
TRAINING = {
    "--input-size": 28,
    "--horizon": 4,
    "--dropout": 0.1,
    "--epochs": 3,
    "--batch-size": 16,
    "--learning-rate": 0.01,
    "--threads": 1,
}
SMALL = {
    "PatchTST": {
        "--patch-len": 7,
        "--stride": 3,
        "--hidden-size": 8,
        "--linear-hidden-size": 32,
        "--n-heads": 2,
        "--encoder-layers": 2,
    },
    "TFT": {"--hidden-size": 8, "--n-head": 2},
    "Informer": {"--hidden-size": 8, "--n-head": 2},
    "Autoformer": {"--hidden-size": 8, "--n-head": 2},
    "FEDformer": {"--hidden-size": 8, "--n-head": 8},
    "iTransformer": {"--hidden-size": 8, "--n-heads": 2, "--d-ff": 16},
}


def executable() -> Path:
    """flash_train: the path in the environment variable FLASH_TRAIN, or that of `make build`."""
    path = Path(os.environ.get("FLASH_TRAIN", ROOT / "build" / "models" / "flash_train"))
    assert path.is_file(), f"expected flash_train at {path}; run `make build` or set FLASH_TRAIN"
    return path


def run(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs flash_train in `folder` with its output captured, without checking its exit status."""
    command = [str(executable()), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)


def error_of(*arguments: object) -> str:
    """The stderr of flash_train, which must refuse these arguments."""
    process = run(*arguments)
    assert process.returncode in (1, 2), process.stdout + process.stderr
    assert "Traceback" not in process.stderr and "terminate called" not in process.stderr
    return process.stderr


def day(row: int) -> str:
    """The date of a row in the CSV files below."""
    return str(date(2020, 1, 1) + timedelta(days=row))


def write_waves(path: Path, rows: int = 160) -> Path:
    """A CSV with a date, two weekly waves and a text column."""
    lines = ["day,up,down,word"]
    for row in range(rows):
        wave = math.sin(2 * math.pi * row / 7)
        lines.append(f"{day(row)},{10 + 3 * wave + row % 3},{-5 * wave + 0.1 * (row % 5)},calm")
    path.write_text("\n".join(lines) + "\n")
    return path


def to_arguments(options: dict[str, object]) -> list[str]:
    """Options as command-line arguments."""
    return [str(word) for pair in options.items() for word in pair]


def small(model: str = "PatchTST", **options: object) -> list[str]:
    """Command-line options for a small network and a short training, changed by `options`."""
    changes = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return to_arguments(TRAINING | SMALL[model] | changes)


@dataclass(frozen=True)
class Training:
    """The files and the output of one training."""

    folder: Path
    process: subprocess.CompletedProcess[str]

    @property
    def csv(self) -> Path:
        return self.folder / "waves.csv"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def forecast(self) -> Path:
        return self.folder / "forecast.csv"

    @cached_property
    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())


def train(folder: Path, model: str = "PatchTST", **options: object) -> Training:
    """Trains on write_waves() with small(), changed by `options` (attention="standard", ...)."""
    csv = write_waves(folder / "waves.csv")
    outputs = {
        "--output": folder / "model.safetensors",
        "--forecast-csv": folder / "forecast.csv",
        "--report": folder / "report.json",
    }
    process = run(
        model, csv, "--target", "up,down", *small(model, **options), *to_arguments(outputs)
    )
    assert process.returncode == 0, process.stderr
    return Training(folder, process)


def metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a model file."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def with_zeros(training: Training, *names: str) -> Path:
    """A copy of the trained model with zeros in the named tensors."""
    tensors = load_file(training.model)
    for name in names:
        tensors[name] = torch.zeros_like(tensors[name])
    changed = training.folder / "changed.safetensors"
    save_file(tensors, changed, metadata(training.model))
    return changed
