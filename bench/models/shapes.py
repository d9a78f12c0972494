"""The shapes that `compare.py` measures: each of the six models at each input length."""

from __future__ import annotations

from dataclasses import dataclass

LENGTHS = (96, 336, 1024)
# iTransformer attends over series, not over time: a few (ETT and weather have 7 and 21), and many
# (the electricity data set has 321).
SERIES = (21, 321)
MODELS = ("TFT", "Informer", "Autoformer", "FEDformer", "PatchTST", "iTransformer")
# Models whose results `use_flash_attention` leaves unchanged. The other two have no softmax
# attention: the switch makes a different model, which cannot be compared with the original.
WITH_FLASH = ("TFT", "Informer", "PatchTST", "iTransformer")

# Seconds of a step of the original per row of input at batch 32, on some CPU: only to estimate the
# time left.
SECONDS_PER_ROW = {
    "TFT": 6e-3,
    "Informer": 4e-3,
    "Autoformer": 8e-3,
    "FEDformer": 8e-3,
    "PatchTST": 1e-3,
}
# iTransformer's step depends on the number of series and hardly on the length.
SECONDS_PER_SERIES = 0.035
# Both sides over the original's alone, and the start of a process for each peak of memory.
BOTH_SIDES = 1.3
MEMORY_SECONDS = 12.0


@dataclass(frozen=True)
class Shape:
    """A model and the sizes of its windows; all other options are neuralforecast's defaults."""

    model: str
    length: int
    series: int = 1
    batch: int = 32
    horizon: int = 96

    @property
    def flash(self) -> bool:
        """Whether our side sets `use_flash_attention`."""
        return self.model in WITH_FLASH

    @property
    def label(self) -> str:
        """For a line of progress or a target."""
        series = f", {self.series} series" if self.model == "iTransformer" else ""
        return f"{self.model}, L {self.length}{series}"

    @property
    def options(self) -> dict[str, int]:
        """The keyword arguments of both sides."""
        options = {"h": self.horizon, "input_size": self.length}
        return options | ({"n_series": self.series} if self.model == "iTransformer" else {})

    def expected_seconds(self, rounds: int, memory: bool) -> float:
        """An estimate of the time to measure it."""
        if self.model == "iTransformer":
            step = SECONDS_PER_SERIES * self.series
        else:
            step = SECONDS_PER_ROW[self.model] * self.length
        step *= BOTH_SIDES * self.batch / 32
        # One more round to warm up, and two processes with about two steps each for the peaks.
        return (rounds + 1) * step + (MEMORY_SECONDS + 3 * step if memory else 0.0)


def plan(
    models: tuple[str, ...] = MODELS,
    lengths: tuple[int, ...] = LENGTHS,
    series: tuple[int, ...] = SERIES,
) -> list[Shape]:
    """Every combination, model by model."""
    return [
        Shape(model, length, count)
        for model in models
        for count in (series if model == "iTransformer" else (1,))
        for length in lengths
    ]


def quick_plan() -> list[Shape]:
    """Each model once, on shapes that take seconds in all."""
    return [
        Shape(model, 40, 3 if model == "iTransformer" else 1, batch=2, horizon=8)
        for model in MODELS
    ]
