"""The targets of the models against neuralforecast's, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.common import formatting
from bench.models import shapes
from bench.models.result import ModelResult
from bench.report import verdict
from bench.report.verdict import Figure, Line, mean_figure, with_repeats

if TYPE_CHECKING:
    from bench.report.records import Repeat

STEP = 1.5
STEP_MEAN = 3.0
MEMORY_SHARE = 1.0
# At the longest past, for the models whose originals store something for every pair of positions
# or for every delay.
LONG = 1024
LONG_MEMORY_SHARE = 0.5
SAVING_MODELS = ("TFT", "Informer", "Autoformer")
# Each side at the best instruction set of this CPU.
ISA = "native"
# What `Line.group` is for all of them, and `records.MODELS`.
GROUP = "models"
SIDES = ("neuralforecast", "ours")


def step_line(result: ModelResult) -> Line:
    """Time of a training step."""
    what = f"{result.shape.label}: training step against neuralforecast"
    low, median, high = result.ratio
    return Line(ISA, GROUP, what, Figure(median, (low, high)), STEP)


def memory_line(result: ModelResult) -> Line:
    """Peak memory of a training step."""
    shape = result.shape
    saving = shape.model in SAVING_MODELS and shape.length >= LONG
    wanted = LONG_MEMORY_SHARE if saving else MEMORY_SHARE
    what = f"{shape.label}: peak memory over neuralforecast's"
    share = result.memory_share
    figure = None if share is None else Figure(share)
    return Line(ISA, GROUP, what, figure, wanted, at_least=False)


def mean_line(results: list[ModelResult]) -> Line:
    """Geometric mean over all shapes; only a whole run has it."""
    measured = {result.shape for result in results}
    whole = measured >= set(shapes.plan())
    figure = mean_figure([result.ratio for result in results]) if whole else None
    what = "training step against neuralforecast: geometric mean"
    return Line(ISA, GROUP, what, figure, STEP_MEAN, note=f"{len(results)} shapes")


def lines(results: list[ModelResult], repeats: Sequence[Repeat] = ()) -> list[Line]:
    """Two targets per shape, and the mean; none without results."""
    if not results:
        return []
    found = [line for result in results for line in (step_line(result), memory_line(result))]
    return with_repeats([*found, mean_line(results)], repeats)


def times_table(results: list[ModelResult], found: list[Line]) -> str:
    """Time of a step, one row per shape; `found` has a line for each."""
    header = ["model", "attention", "L", "series", *SIDES, "faster", "quartiles", "wanted"]
    header += ["verdict", "rounds", "difference"]
    rows = []
    for result, line in zip(results, found, strict=True):
        shape = result.shape
        rows.append(
            [
                shape.model,
                "flash" if shape.flash else "native",
                str(shape.length),
                str(shape.series),
                *(formatting.seconds_text(result.seconds[side]) for side in SIDES),
                f"{line.figure:.2f}x",
                line.quartiles_text,
                line.wanted_text,
                line.verdict,
                str(result.rounds),
                f"{result.difference:.0e}",
            ]
        )
    return formatting.table(header, rows, left=2)


def memory_table(results: list[ModelResult], found: list[Line]) -> str:
    """Peak memory of a step, one row per shape; `found` has a line for each."""
    rows = []
    for result, line in zip(results, found, strict=True):
        shape = result.shape
        sizes = (
            [formatting.bytes_text(result.bytes[s]) for s in SIDES] if result.bytes else ["-", "-"]
        )
        share = "-" if line.figure is None else f"{line.figure:.2f}x"
        names = [shape.model, str(shape.length), str(shape.series)]
        rows.append([*names, *sizes, share, line.wanted_text, line.verdict])
    header = ["model", "L", "series", *SIDES, "ours / neuralforecast", "wanted", "verdict"]
    return formatting.table(header, rows)


def table(results: list[ModelResult], repeats: Sequence[Repeat] = ()) -> str:
    """Both tables with their captions, and how many targets are met."""
    *found, mean = lines(results, repeats)
    parts = [
        "Training step (forward, backward, Adam), median. `difference` compares the outputs from "
        "the same weights, relative to the largest output, in nine windows of ten:",
        times_table(results, found[::2]),
        f"Geometric mean of `faster`: {mean.figure_text} ({mean.quartiles_text}), wanted "
        f"{mean.wanted_text}: {mean.verdict}.",
        "Peak memory of a training step beyond what the process held before it, measured once:",
        memory_table(results, found[1::2]),
        verdict.summary([*found, mean]),
    ]
    return "\n\n".join(parts)
