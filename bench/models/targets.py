"""The targets of the models, and what their results say about each: pure functions.

A step is faster by neuralforecast's time over ours, both with plain Adam. The floor and the second
thread are judged by the step with fused Adam, which is the one that the documentation shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bench.models import shapes
from bench.models.result import InferenceResult, ModelResult, Quartiles
from bench.models.shapes import Shape
from bench.report.verdict import Figure, Line, mean_figure, with_repeats

if TYPE_CHECKING:
    from bench.report.records import Repeat

STEP = 1.5
STEP_MEAN = 3.0
# Over the six models at these lengths, iTransformer with few series.
SHORT = (96, 336)
SHORT_MEAN = 3.2
# Our step over its floor. In iTransformer nearly everything is a product.
FLOOR = 1.8
FLOOR_OF = {"iTransformer": 1.3}
FLOOR_MEAN = 1.5
TWO_THREADS = 1.7
# Of the memory of the original: at the shortest input the parameters, their gradients and Adam's
# state, which both sides hold, are most of it.
MEMORY_SHARE = 1.0
LONG = 336
LONG_MEMORY_SHARE = 0.5
# A forecast is faster than that of every other side.
FORECAST = 1.0
# Each side at the best instruction set of this CPU.
ISA = "native"
# What `Line.group` is for all of them, and `records.MODELS`.
GROUP = "models"
FUSED = "fused"
FORECAST_RIVALS = {"neuralforecast": "neuralforecast", "onnx": "neuralforecast in ONNX Runtime"}


def figure_of(quartiles: Quartiles | None) -> Figure | None:
    if quartiles is None:
        return None
    low, median, high = quartiles
    return Figure(median, (low, high))


def step_line(result: ModelResult) -> Line:
    """Time of a training step."""
    what = f"{result.shape.label}: training step against neuralforecast"
    return Line(ISA, GROUP, what, figure_of(result.ratio), STEP)


def memory_line(result: ModelResult) -> Line:
    """Peak memory of a training step."""
    shape = result.shape
    wanted = LONG_MEMORY_SHARE if shape.length >= LONG else MEMORY_SHARE
    what = f"{shape.label}: peak memory over neuralforecast's"
    share = result.memory_share
    figure = None if share is None else Figure(share)
    return Line(ISA, GROUP, what, figure, wanted, at_least=False)


def over_floor(result: ModelResult) -> Quartiles | None:
    """The judged step over its floor."""
    return None if result.floor is None else result.floor.over[FUSED]


def floor_line(result: ModelResult) -> Line:
    """Time of a training step over its operations at the peak of the core."""
    shape = result.shape
    wanted = FLOOR_OF.get(shape.model, FLOOR)
    what = f"{shape.label}: training step over its floor"
    return Line(ISA, GROUP, what, figure_of(over_floor(result)), wanted, at_least=False)


def threads_line(result: ModelResult) -> Line:
    """A training step on two threads."""
    what = f"{result.shape.label}: training step, two threads against one"
    return Line(ISA, GROUP, what, figure_of(result.threads), TWO_THREADS)


def has_threads(result: ModelResult) -> bool:
    """Whether the shape is measured on two threads."""
    return not result.shape.many_series


def geometric(
    results: list[ModelResult], wanted: set[Shape], ratio: Callable[[ModelResult], Quartiles | None]
) -> Figure | None:
    """Mean over the results of these shapes; only a run that measured all of them has it."""
    ratios = {r.shape: found for r in results if (found := ratio(r)) is not None}
    if not wanted <= ratios.keys():
        return None
    return mean_figure([ratios[shape] for shape in ratios if shape in wanted])


def mean_line(results: list[ModelResult]) -> Line:
    """Geometric mean over all shapes."""
    figure = geometric(results, set(shapes.plan()), lambda result: result.ratio)
    what = "training step against neuralforecast: geometric mean"
    return Line(ISA, GROUP, what, figure, STEP_MEAN, note=f"{len(results)} shapes")


def short_mean_line(results: list[ModelResult]) -> Line:
    """Geometric mean over the six models at the shorter lengths."""
    wanted = set(shapes.plan(lengths=SHORT, series=shapes.SERIES[:1]))
    figure = geometric(results, wanted, lambda result: result.ratio)
    lengths = " and ".join(map(str, SHORT))
    what = f"training step against neuralforecast: geometric mean at L {lengths}"
    return Line(ISA, GROUP, what, figure, SHORT_MEAN, note=f"{len(wanted)} shapes")


def floor_mean_line(results: list[ModelResult]) -> Line:
    """Geometric mean over the six models, iTransformer with few series."""
    wanted = set(shapes.plan(series=shapes.SERIES[:1]))
    figure = geometric(results, wanted, over_floor)
    what = "training step over its floor: geometric mean"
    note = f"{len(wanted)} shapes"
    return Line(ISA, GROUP, what, figure, FLOOR_MEAN, at_least=False, note=note)


def lines(results: list[ModelResult], repeats: Sequence[Repeat] = ()) -> list[Line]:
    """Three or four targets per shape, and the means; none without results."""
    if not results:
        return []
    found = [line(r) for r in results for line in (step_line, memory_line, floor_line)]
    found += [threads_line(result) for result in results if has_threads(result)]
    found += [mean(results) for mean in (mean_line, short_mean_line, floor_mean_line)]
    return with_repeats(found, repeats)


def forecast_line(result: InferenceResult, rival: str) -> Line:
    """Time of a forecast; the note says why a rival has none."""
    shape = result.shape
    what = f"{shape.label}, batch {shape.batch}: forecast against {FORECAST_RIVALS[rival]}"
    figure = figure_of(result.ratio.get(rival))
    return Line(ISA, GROUP, what, figure, FORECAST, note=result.missing.get(rival, ""))


def forecast_lines(results: list[InferenceResult], repeats: Sequence[Repeat] = ()) -> list[Line]:
    """One target per shape and rival."""
    found = [forecast_line(result, rival) for result in results for rival in FORECAST_RIVALS]
    return with_repeats(found, repeats)
