"""The tables of training steps: time, floor, threads and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.common import formatting
from bench.models import targets
from bench.models.result import ModelResult
from bench.report import verdict
from bench.report.verdict import Line, with_repeats

if TYPE_CHECKING:
    from bench.report.records import Repeat

SIDES = ("neuralforecast", "ours")
JUDGED = ["quartiles", "wanted", "verdict"]


def names(result: ModelResult) -> list[str]:
    """The first columns of each table."""
    return [result.shape.model, str(result.shape.length), str(result.shape.series)]


def judged(line: Line) -> list[str]:
    """The columns JUDGED."""
    return [line.quartiles_text, line.wanted_text, line.verdict]


def times_table(results: list[ModelResult], found: list[Line]) -> str:
    """Time of a step, one row per shape; `found` has a line for each."""
    header = ["model", "attention", "L", "series", *SIDES, "faster", *JUDGED]
    header += ["rounds", "difference"]
    rows = []
    for result, line in zip(results, found, strict=True):
        model, *sizes = names(result)
        rows.append(
            [
                model,
                "flash" if result.shape.flash else "native",
                *sizes,
                *(formatting.seconds_text(result.seconds[side]) for side in SIDES),
                f"{line.figure:.2f}x",
                *judged(line),
                str(result.rounds),
                f"{result.difference:.0e}",
            ]
        )
    return formatting.table(header, rows, left=2)


def floor_table(results: list[ModelResult], found: list[Line]) -> str:
    """A step with either Adam over its floor, one row per shape."""
    header = ["model", "L", "series", "GFLOP", "GFLOP/s", "floor", "plain Adam", "fused Adam"]
    header += ["plain / fused", "plain / floor", "fused / floor", *JUDGED]
    rows = []
    for result, line in zip(results, found, strict=True):
        floor = result.floor
        if floor is None or result.fused is None:
            continue
        rows.append(
            [
                *names(result),
                f"{floor.flops / 1e9:.3g}",
                f"{floor.fma / 1e9:.1f}",
                formatting.seconds_text(floor.seconds),
                *(formatting.seconds_text(result.seconds[side]) for side in ("ours", "fused")),
                f"{result.fused[1]:.2f}x",
                f"{floor.over['ours'][1]:.2f}x",
                f"{line.figure:.2f}x",
                *judged(line),
            ]
        )
    return formatting.table(header, rows)


def threads_table(results: list[ModelResult], found: list[Line]) -> str:
    """A step on two threads, one row per shape."""
    rows = [
        [*names(result), f"{line.figure:.2f}x", *judged(line)]
        for result, line in zip(results, found, strict=True)
        if line.figure is not None
    ]
    return formatting.table(["model", "L", "series", "faster", *JUDGED], rows)


def memory_table(results: list[ModelResult], found: list[Line]) -> str:
    """Peak memory of a step, one row per shape; `found` has a line for each."""
    rows = []
    for result, line in zip(results, found, strict=True):
        sizes = (
            [formatting.bytes_text(result.bytes[s]) for s in SIDES] if result.bytes else ["-", "-"]
        )
        share = "-" if line.figure is None else f"{line.figure:.2f}x"
        rows.append([*names(result), *sizes, share, line.wanted_text, line.verdict])
    header = ["model", "L", "series", *SIDES, "ours / neuralforecast", "wanted", "verdict"]
    return formatting.table(header, rows)


def mean_text(line: Line) -> str:
    """One sentence about a mean."""
    return (
        f"{line.what[0].upper()}{line.what[1:]} of {line.note}: {line.figure_text} "
        f"({line.quartiles_text}), wanted {line.wanted_text}: {line.verdict}."
    )


def floor_part(results: list[ModelResult], found: list[Line], mean: Line) -> list[str]:
    """Caption, table and mean; nothing for older records, which have no floor."""
    if all(result.floor is None for result in results):
        return []
    caption = (
        "Our step over its floor, the operations of the original's forward and backward at the "
        "peak of the core's multiply-adds, measured right before and right after our steps. "
        "Counted are matrix products, convolutions, LSTM layers and Fourier transforms; not "
        "element-wise operations, norms, softmax, sorting and Adam. The last columns judge the "
        "step with `torch.optim.Adam(..., fused=True)`:"
    )
    return [caption, floor_table(results, found), mean_text(mean)]


def threads_part(results: list[ModelResult], found: list[Line]) -> list[str]:
    """Caption and table; nothing where two threads were not measured."""
    if all(line.figure is None for line in found):
        return []
    return ["Our step on two threads, with fused Adam:", threads_table(results, found)]


def table(results: list[ModelResult], repeats: Sequence[Repeat] = ()) -> str:
    """All tables with their captions, and how many targets are met."""

    def of(found: list[Line]) -> list[Line]:
        return with_repeats(found, repeats)

    mean, short_mean, floor_mean = of(
        [
            targets.mean_line(results),
            targets.short_mean_line(results),
            targets.floor_mean_line(results),
        ]
    )
    threaded = [result for result in results if targets.has_threads(result)]
    parts = [
        "Training step (forward, backward, Adam), median. `difference` compares the outputs from "
        "the same weights, relative to the largest output, in nine windows of ten:",
        times_table(results, of([targets.step_line(result) for result in results])),
        f"{mean_text(mean)} {mean_text(short_mean)}",
        *floor_part(results, of([targets.floor_line(result) for result in results]), floor_mean),
        *threads_part(threaded, of([targets.threads_line(result) for result in threaded])),
        "Peak memory of a training step beyond what the process held before it, measured once:",
        memory_table(results, of([targets.memory_line(result) for result in results])),
        verdict.summary(targets.lines(results, repeats)),
    ]
    return "\n\n".join(parts)
