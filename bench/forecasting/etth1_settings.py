"""Settings of PatchTST and iTransformer on ETTh1, from the scripts of their authors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.forecasting.etth1_data import Split


@dataclass(frozen=True)
class Settings:
    """A model and its training, the same for flash_train and for neuralforecast.

    Attributes:
        options: of the model, under neuralforecast's names; flash_train's have hyphens instead.
        decay: factor of the learning rate after each epoch beyond `decay_after`.
        together: whether a window holds all series, or one.
        epoch_seconds: estimate for both sides together, only for the time left.
    """

    model: str
    input_size: int
    options: dict[str, Any]
    batch_size: int
    learning_rate: float
    decay: float
    decay_after: int
    epochs: int
    together: bool
    epoch_seconds: float
    horizon: int = 96
    season: int = 24

    def learning_rate_of(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1."""
        return self.learning_rate * self.decay ** max(0, epoch - self.decay_after)

    def original_options(self, series: int, seed: int) -> dict[str, Any]:
        """The keyword arguments of neuralforecast's model."""
        sizes = {"h": self.horizon, "input_size": self.input_size}
        if self.together:
            sizes["n_series"] = series
        return {**sizes, **self.options, "random_seed": seed}

    def command(
        self, executable: Path, data: Path, split: Split, seed: int, epochs: int, stem: Path
    ) -> list[str]:
        """The command line of flash_train; names of the files that it writes begin with `stem`."""
        options: dict[str, Any] = {
            "target": ",".join(split.columns),
            "train_rows": split.train,
            "validation_rows": split.validation,
            "test_rows": split.test,
            "input_size": self.input_size,
            "horizon": self.horizon,
            "season": self.season,
            **self.options,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "decay": self.decay,
            "decay_after": self.decay_after,
            "epochs": epochs,
            "loss": "MSE",
            "seed": seed,
            "threads": 1,
            "output": stem.with_suffix(".safetensors"),
            "report": stem.with_suffix(".json"),
        }
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return [str(executable), self.model, str(data), *words]


SETTINGS = {
    "iTransformer": Settings(
        model="iTransformer",
        input_size=96,
        options={"hidden_size": 256, "d_ff": 256, "e_layers": 2, "n_heads": 8, "dropout": 0.1},
        batch_size=32,
        learning_rate=1e-4,
        decay=0.5,
        decay_after=2,
        epochs=10,
        together=True,
        epoch_seconds=13.0,
    ),
    "PatchTST": Settings(
        model="PatchTST",
        input_size=336,
        options={
            "patch_len": 16,
            "stride": 8,
            "encoder_layers": 3,
            "n_heads": 4,
            "hidden_size": 16,
            "linear_hidden_size": 128,
            "dropout": 0.3,
        },
        batch_size=128,
        learning_rate=1e-4,
        decay=0.9,
        decay_after=4,
        epochs=32,
        together=False,
        epoch_seconds=54.0,
    ),
}
