"""The table of forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.common import formatting
from bench.models import targets
from bench.models.result import InferenceResult
from bench.report import verdict
from bench.report.verdict import with_repeats

if TYPE_CHECKING:
    from bench.report.records import Repeat


def rival_cells(result: InferenceResult, rival: str, repeats: Sequence[Repeat]) -> list[str]:
    """Time, ratio, quartiles and verdict; a side that does not run has none."""
    (line,) = with_repeats([targets.forecast_line(result, rival)], repeats)
    if line.figure is None:
        return ["-", "-", "-", "cannot run" if line.note else line.verdict]
    time = formatting.seconds_text(result.seconds[rival])
    return [time, f"{line.figure:.2f}x", line.quartiles_text, line.verdict]


def reasons(results: list[InferenceResult]) -> list[str]:
    """Why a side of a model does not run, one line each."""
    found: dict[str, list[str]] = {}
    for result in results:
        for rival, reason in result.missing.items():
            text = f"- {result.shape.model}, {targets.FORECAST_RIVALS[rival]}: {reason}"
            point = f"L {result.shape.length} batch {result.shape.batch}"
            found.setdefault(text, []).append(point)
    return [f"{text} ({', '.join(points)})" for text, points in found.items()]


def table(results: list[InferenceResult], repeats: Sequence[Repeat] = ()) -> str:
    """The forecasts with their caption, what cannot run and why, and how many targets are met."""
    header = ["model", "L", "series", "batch", "ours"]
    for name in targets.FORECAST_RIVALS.values():
        header += [name, "faster", "quartiles", "verdict"]
    header += ["rounds"]
    rows = []
    for result in results:
        shape = result.shape
        row = [shape.model, str(shape.length), str(shape.series), str(shape.batch)]
        row.append(formatting.seconds_text(result.seconds["ours"]))
        for rival in targets.FORECAST_RIVALS:
            row += rival_cells(result, rival, repeats)
        rows.append([*row, str(result.rounds)])
    wanted = targets.forecast_lines(results)[0].wanted_text
    parts = [
        "Forecast: forward in evaluation mode without autograd, horizon "
        f"{results[0].shape.horizon}, one thread, median. Wanted against either side: {wanted}.",
        formatting.table(header, rows),
    ]
    if missing := reasons(results):
        parts.append("\n".join(missing))
    return "\n\n".join([*parts, verdict.summary(targets.forecast_lines(results, repeats))])
