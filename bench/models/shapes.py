"""The shapes that `compare.py` measures: each of the six models at each input length."""

from __future__ import annotations

from dataclasses import dataclass

LENGTHS = (96, 336, 1024)
# iTransformer attends over series, not over time: a few (ETT and weather have 7 and 21), and many
# (the electricity data set has 321).
SERIES = (21, 321)
# Forecasts: one window, as a service answers a request, and a batch.
INFERENCE_BATCHES = (1, 32)
INFERENCE_LENGTHS = (96, 336)
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
# The original's step, and ours with either Adam, over the original's alone; ours on one thread and
# on two; and the start of a process for each peak of memory.
BOTH_SIDES = 1.6
THREADS = 0.5
MEMORY_SECONDS = 12.0
# The rounds of one shape end after so long: with hundreds of series a round takes more than ten
# seconds, and seven rounds of such steps vary less than fifteen of short ones.
BUDGET_SECONDS = 90.0
# A forecast over a step of the original, with those of the other sides; and the export of a model.
FORECAST = 0.5
EXPORT_SECONDS = 15.0


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
    def many_series(self) -> bool:
        """Whether it is one of the additional shapes with hundreds of series."""
        return self.series >= max(SERIES)

    @property
    def options(self) -> dict[str, int]:
        """The keyword arguments of both sides."""
        options = {"h": self.horizon, "input_size": self.length}
        return options | ({"n_series": self.series} if self.model == "iTransformer" else {})

    @property
    def step_seconds(self) -> float:
        """An estimate of a step of the original."""
        if self.model == "iTransformer":
            step = SECONDS_PER_SERIES * self.series
        else:
            step = SECONDS_PER_ROW[self.model] * self.length
        return step * self.batch / 32

    def expected_seconds(self, rounds: int, memory: bool) -> float:
        """An estimate of the time to measure a training step."""
        step = self.step_seconds
        # One more round to warm up, and a step under the counter of operations.
        found = min((rounds + 1) * BOTH_SIDES * step, BUDGET_SECONDS) + 2 * step
        if not self.many_series:
            found += (rounds + 1) * THREADS * step
        # Two processes with about two steps each for the peaks.
        return found + (MEMORY_SECONDS + 3 * step if memory else 0.0)

    def expected_forecast_seconds(self, rounds: int) -> float:
        """An estimate of the time to measure a forecast."""
        return EXPORT_SECONDS + (rounds + 1) * FORECAST * self.step_seconds


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


def inference_plan(
    models: tuple[str, ...] = MODELS, lengths: tuple[int, ...] = INFERENCE_LENGTHS
) -> list[Shape]:
    """The forecasts, model by model; those of INFERENCE_LENGTHS that `lengths` contains."""
    return [
        Shape(model, length, SERIES[0] if model == "iTransformer" else 1, batch)
        for model in models
        for length in INFERENCE_LENGTHS
        if length in lengths
        for batch in INFERENCE_BATCHES
    ]


def quick_plan() -> list[Shape]:
    """Each model once, on shapes that take seconds in all."""
    return [
        Shape(model, 40, 3 if model == "iTransformer" else 1, batch=2, horizon=8)
        for model in MODELS
    ]
