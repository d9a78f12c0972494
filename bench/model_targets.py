"""The marks for the models beside neuralforecast's, and the table that shows them."""

from __future__ import annotations

from collections.abc import Iterator

import measure
import model_shapes
import targets
from model_results import ModelResult
from targets import Line

STEP = 1.5
STEP_MEAN = 3.0
MEMORY_SHARE = 1.0
# At the longest past, of the models whose originals keep something for every pair of positions or
# for every delay.
LONG = 1024
LONG_MEMORY_SHARE = 0.5
SAVING_MODELS = ("TFT", "Informer", "Autoformer")
# Everybody at the best that this CPU has.
ISA = "native"


def step_line(result: ModelResult) -> Line:
    """Time of a training step."""
    what = f"{result.shape.label}: training step against neuralforecast"
    return Line(ISA, what, result.times_as_fast, STEP)


def memory_line(result: ModelResult) -> Line:
    """Peak memory of a training step."""
    shape = result.shape
    saving = shape.model in SAVING_MODELS and shape.length >= LONG
    wanted = LONG_MEMORY_SHARE if saving else MEMORY_SHARE
    what = f"{shape.label}: peak memory over neuralforecast's"
    return Line(ISA, what, result.memory_share, wanted, at_least=False)


def mean_line(results: list[ModelResult]) -> Line:
    """Over all shapes; only a whole run has it."""
    measured = {result.shape for result in results}
    whole = measured >= set(model_shapes.plan())
    figure = targets.geometric_mean(r.times_as_fast for r in results) if whole else None
    what = "training step against neuralforecast: geometric mean"
    return Line(ISA, what, figure, STEP_MEAN, note=f"{len(results)} shapes")


def lines(results: list[ModelResult]) -> Iterator[Line]:
    """Two marks a shape, and the mean."""
    for result in results:
        yield step_line(result)
        yield memory_line(result)
    yield mean_line(results)


SIDES = ("neuralforecast", "ours")


def times_table(results: list[ModelResult]) -> str:
    """Time of a step, one row a shape."""
    header = ["model", "attention", "L", "series", *SIDES, "faster", "quartiles", "wanted"]
    header += ["verdict", "rounds", "difference"]
    rows = []
    for result in results:
        shape, line = result.shape, step_line(result)
        rows.append(
            [
                shape.model,
                "flash" if shape.flash else "native",
                str(shape.length),
                str(shape.series),
                *(measure.seconds_text(result.seconds[side]) for side in SIDES),
                f"{result.times_as_fast:.2f}x",
                f"{result.ratio[0]:.2f}-{result.ratio[2]:.2f}",
                line.wanted_text,
                line.verdict,
                str(result.rounds),
                f"{result.difference:.0e}",
            ]
        )
    return measure.table(header, rows, left=2)


def memory_table(results: list[ModelResult]) -> str:
    """Peak memory of a step, one row a shape."""
    rows = []
    for result in results:
        shape, line = result.shape, memory_line(result)
        sizes = [measure.bytes_text(result.bytes[s]) for s in SIDES] if result.bytes else ["-", "-"]
        share = "-" if line.figure is None else f"{line.figure:.2f}x"
        names = [shape.model, str(shape.length), str(shape.series)]
        rows.append([*names, *sizes, share, line.wanted_text, line.verdict])
    header = ["model", "L", "series", *SIDES, "ours / neuralforecast", "wanted", "verdict"]
    return measure.table(header, rows)


def table(results: list[ModelResult]) -> str:
    """Both tables, each under its name, and how many marks are reached."""
    mean = mean_line(results)
    found = list(lines(results))
    parts = [
        "Training step (forward, backward, Adam), median; the difference is that of the outputs "
        "from the same weights, beside the largest output, in nine windows of ten:",
        times_table(results),
        f"Geometric mean of `faster`: {mean.figure_text}, wanted {mean.wanted_text}: "
        f"{mean.verdict}.",
        "Peak memory of a training step, beyond what the process held before it:",
        memory_table(results),
        targets.summary(found),
    ]
    return "\n\n".join(parts)
