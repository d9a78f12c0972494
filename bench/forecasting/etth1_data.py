"""ETTh1 in the parts that papers use, standardized and cut into windows as in flash_train."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """The columns to forecast, and the number of rows of each part, in order of time."""

    columns: tuple[str, ...]
    train: int
    validation: int
    test: int

    @property
    def rows(self) -> int:
        return self.train + self.validation + self.test


# Twelve, four and four months of thirty days.
ETTH1 = Split(("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"), 8640, 2880, 2880)


def read_series(path: Path, split: Split) -> Tensor:
    """The columns of a CSV file, float64 [series, rows]; exits if the file lacks them."""
    if not path.is_file():
        sys.exit(f"bench/forecasting/etth1.py: expected a CSV file at {path}, found none")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        if missing := [name for name in split.columns if name not in names]:
            sys.exit(
                f"bench/forecasting/etth1.py: {path}: expected the columns "
                f"{', '.join(split.columns)}, found {', '.join(names)} without {', '.join(missing)}"
            )
        try:
            rows = [[float(row[name]) for name in split.columns] for row in reader]
        except (TypeError, ValueError) as error:
            sys.exit(
                f"bench/forecasting/etth1.py: {path}, line {reader.line_num}: expected numbers, "
                f"got {error}"
            )
    if len(rows) < split.rows:
        sys.exit(
            f"bench/forecasting/etth1.py: {path}: expected at least {split.rows} rows, found "
            f"{len(rows)}"
        )
    return torch.tensor(rows, dtype=torch.float64).T


def standardized(series: Tensor, split: Split) -> Tensor:
    """Each series scaled to mean 0 and deviation 1 over the training part, float32."""
    train = series[:, : split.train]
    mean, deviation = train.mean(1, keepdim=True), train.std(1, correction=0, keepdim=True)
    return ((series - mean) / deviation).float()


class Windows:
    """Inputs and futures, one window starting at each row from `begin` and ending before `end`.

    A window holds all series if `together`; otherwise one, and the windows of a row are adjacent.
    """

    def __init__(
        self, series: Tensor, begin: int, end: int, input_size: int, horizon: int, together: bool
    ) -> None:
        count, rows = series.shape
        self.input_size = input_size
        starts = torch.arange(begin, end - input_size - horizon + 1)
        positions = starts[:, None] + rows * torch.arange(count)
        self.positions = positions if together else positions.reshape(-1, 1)
        self.stretches = series.reshape(-1).unfold(0, input_size + horizon, 1)

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, input_size, N] and futures [B, horizon, N]; N is 1 unless `together`."""
        rows = self.stretches[self.positions[indices]].transpose(1, 2)
        return rows[:, : self.input_size].contiguous(), rows[:, self.input_size :].contiguous()


@dataclass(frozen=True)
class Parts:
    """The windows of the three parts."""

    train: Windows
    validation: Windows
    test: Windows


def parts(series: Tensor, split: Split, input_size: int, horizon: int, together: bool) -> Parts:
    """Inputs of validation and test windows reach back into the part before, never ahead."""

    def windows(begin: int, end: int) -> Windows:
        return Windows(series, begin, end, input_size, horizon, together)

    test = split.train + split.validation
    return Parts(
        train=windows(0, split.train),
        validation=windows(split.train - input_size, test),
        test=windows(test - input_size, split.rows),
    )
