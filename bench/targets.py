"""The marks that this project set itself in speed, and what a run says about each.

Pure functions of a `Record`. A ratio is a rival's time over that of flash unless said otherwise;
both at one instruction set, on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import measure
import points
from results import Record, Result

# (dtype, direction) -> instruction set -> least geometric mean over the grid.
GRID_MEANS: dict[tuple[str, str], dict[str, float]] = {
    ("float32", "forward"): {"avx2": 1.65, "avx512": 1.85},
    ("float32", "backward"): {"avx2": 1.70, "avx512": 1.80},
    ("float64", "forward"): {"avx2": 1.6},
    ("float64", "backward"): {"avx2": 1.6},
    ("bfloat16", "forward"): {"avx2": 1.6, "avx512": 1.6},
    ("bfloat16", "backward"): {"avx2": 1.3, "avx512": 1.3},
}
# (dtype, direction) -> least ratio of any point of the grid.
GRID_WORST = {
    ("float32", "forward"): 1.0,
    ("float32", "backward"): 1.0,
    ("bfloat16", "forward"): 1.1,
}
DECODE_OF_COPY = 90.0
WINDOW_OVER_FULL = 15.0
LONG = 1024
LONG_PERCENT_OF_PEAK = 80.0
FORECAST_MEAN = 2.0
TWO_THREADS = 1.8
OVERHEAD = 1.0
OPTION_AGAINST_TORCH = 3.0
OPTION_OVER_PLAIN = 1.3
STANDARD = 1.5
STANDARD_AT_1024 = 2.0


@dataclass(frozen=True)
class Line:
    """One mark at one instruction set; `figure` is None where nothing was measured."""

    isa: str
    what: str
    figure: float | None
    wanted: float
    at_least: bool = True
    unit: str = "x"
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        reached = self.figure >= self.wanted if self.at_least else self.figure <= self.wanted
        return "pass" if reached else "SHORTFALL"

    @property
    def wanted_text(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.wanted:g}{self.unit}"

    @property
    def figure_text(self) -> str:
        if self.figure is None:
            return "-"
        # A digit more than the marks have, or a near miss would look like the mark itself.
        return f"{self.figure:.1f}{self.unit}" if self.unit == "%" else f"{self.figure:.3f}x"


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def place(result: Result) -> str:
    """Which point of its group, for a note."""
    point = result.point
    causal = ", causal" if point.causal else ""
    return f"L {point.length} D {point.head_dim}{causal}"


def worst(results: list[Result], rival: str = "torch") -> tuple[float | None, str]:
    """The smallest ratio, and where."""
    if not results:
        return None, ""
    found = min(results, key=lambda result: result.times_as_fast(rival))
    return found.times_as_fast(rival), f"at {place(found)}"


def grid_lines(record: Record, isa: str) -> Iterator[Line]:
    """Means over head sizes, lengths and masks, and the worst single points."""
    for (dtype, direction), wanted in GRID_MEANS.items():
        if isa not in wanted:
            continue
        found = [
            result
            for result in record.of(isa, "grid")
            if result.point.dtype == dtype and result.point.direction == direction
        ]
        mean = geometric_mean(result.times_as_fast("torch") for result in found)
        what = f"{direction}, {dtype}"
        note = f"{len(found)} points"
        yield Line(isa, f"{what}: mean against torch", mean, wanted[isa], note=note)
        least = GRID_WORST.get((dtype, direction))
        if least is not None:
            figure, note = worst(found)
            yield Line(isa, f"{what}: worst point against torch", figure, least, note=note)


def peak_lines(record: Record, isa: str) -> Iterator[Line]:
    """Long sequences at D 64 beside the multiply-adds that the core can do."""
    found = [
        result
        for result in record.of(isa, "grid")
        if result.point.direction == "forward"
        and result.point.dtype == "float32"
        and result.point.head_dim == 64
        and result.point.length >= LONG
        and not result.point.causal
    ]
    lowest = min(found, key=Result.percent_of_peak, default=None)
    yield Line(
        isa,
        f"forward, D 64, L >= {LONG}: lowest share of the peak",
        None if lowest is None else lowest.percent_of_peak(),
        LONG_PERCENT_OF_PEAK,
        unit="%",
        note="" if lowest is None else f"at {place(lowest)}",
    )


def standard_lines(record: Record, isa: str) -> Iterator[Line]:
    """Forward, D 64, full, against attention as it is in the textbook."""
    for length in measure.GUIDE_LENGTHS:
        found = [
            result
            for result in record.of(isa, "grid")
            if "standard" in result.ratio
            and result.point.length == length
            and not result.point.causal
        ]
        figure = found[0].times_as_fast("standard") if found else None
        wanted = STANDARD_AT_1024 if length == 1024 else STANDARD
        yield Line(isa, f"forward, D 64, L {length}: against standard", figure, wanted)


def forecast_lines(record: Record, isa: str) -> Iterator[Line]:
    """The short sequences of a forecaster."""
    for direction in ("forward", "backward"):
        found = [r for r in record.of(isa, "forecast") if r.point.direction == direction]
        ratios = [result.times_as_fast("torch") for result in found]
        figure, where = worst(found)
        note = "" if figure is None else f"worst {figure:.2f}x {where}"
        what = f"{direction}, forecasting shapes: mean against torch"
        yield Line(isa, what, geometric_mean(ratios), FORECAST_MEAN, note=note)


def overhead_lines(record: Record, isa: str) -> Iterator[Line]:
    """Almost no work at all."""
    for direction in ("forward", "recorded", "training"):
        found = [r for r in record.of(isa, "overhead") if r.point.direction == direction]
        figure = found[0].times_as_fast("torch") if found else None
        what = f"overhead at L 4 D 8, {points.DIRECTIONS[direction]}: against torch"
        yield Line(isa, what, figure, OVERHEAD)


def thread_lines(record: Record, isa: str) -> Iterator[Line]:
    """Two threads against one, flash alone."""
    one_core = record.runs[isa]["usable_cores"] < 2
    for heads, length in points.THREAD_SHAPES:
        for direction in ("forward", "backward"):
            found = [
                result
                for result in record.of(isa, "threads")
                if (result.point.heads, result.point.length) == (heads, length)
                and result.point.direction == direction
            ]
            what = f"{direction}, B*H {heads}, L {length}, D 64: two threads against one"
            figure = found[0].times_as_fast("one thread") if found else None
            yield Line(isa, what, figure, TWO_THREADS, note="one core" if one_core else "")


def decode_lines(record: Record, isa: str) -> Iterator[Line]:
    """One query over a long cache, as a share of what a copy gets of the memory."""
    one_core = record.runs[isa]["usable_cores"] < 2
    for head_dim in points.DECODE_HEAD_DIMS:
        found = [
            r
            for r in record.of(isa, "decode")
            if r.point.head_dim == head_dim and r.point.dtype == "float32"
        ]
        figure = 100 * found[0].times_as_fast("copy") if found else None
        what = f"decode, {points.DECODE_KEYS} keys, D {head_dim}, two threads: share of a copy"
        yield Line(isa, what, figure, DECODE_OF_COPY, unit="%", note="one core" if one_core else "")


def window_lines(record: Record, isa: str) -> Iterator[Line]:
    """A narrow window against all keys."""
    for direction in ("forward", "training"):
        found = [r for r in record.of(isa, "window") if r.point.direction == direction]
        figure = found[0].times_as_fast("full") if found else None
        what = f"{points.DIRECTIONS[direction]}, window {points.WINDOW} of {points.WINDOW_LENGTH}"
        yield Line(isa, f"{what}: against full", figure, WINDOW_OVER_FULL)


def option_lines(record: Record, isa: str) -> Iterator[Line]:
    """Each option against torch with it, and as a multiple of the time of the plain call."""
    for group, names, rival, wanted, text in (
        ("option/torch", points.RIVAL_OPTIONS, "torch", OPTION_AGAINST_TORCH, "against torch's"),
        ("option/plain", points.OPTIONS, "option", OPTION_OVER_PLAIN, "time over the plain call"),
    ):
        for name in names:
            found = [r for r in record.of(isa, group) if r.point.option == name]
            figure = found[0].times_as_fast(rival) if found else None
            at_least = rival == "torch"
            yield Line(isa, f"option {name}: {text}", figure, wanted, at_least)


PARTS: tuple[Callable[[Record, str], Iterator[Line]], ...] = (
    grid_lines,
    peak_lines,
    standard_lines,
    forecast_lines,
    thread_lines,
    overhead_lines,
    option_lines,
    window_lines,
    decode_lines,
)


def lines(record: Record) -> list[Line]:
    """Every mark, instruction set by instruction set."""
    return [line for isa in record.isas for part in PARTS for line in part(record, isa)]


def summary(found: list[Line]) -> str:
    """How many are reached, in a sentence."""
    verdicts = [line.verdict for line in found]
    short, missing = verdicts.count("SHORTFALL"), verdicts.count("not measured")
    judged = len(found) - missing
    text = f"{judged - short} of {judged} targets reached"
    text += f", {short} SHORTFALL{'S' if short > 1 else ''}" if short else ""
    return text + (f"; {missing} not measured" if missing else "") + "."


def report(found: list[Line]) -> str:
    """All lines as a table, and the sentence."""
    header = ["ISA", "what", "verdict", "wanted", "figure", "note"]
    cells = [
        [line.isa, line.what, line.verdict, line.wanted_text, line.figure_text, line.note]
        for line in found
    ]
    # Notes are text behind the numbers, so everything is lined up to the left.
    return f"{measure.table(header, cells, left=len(header))}\n\n{summary(found)}"


def side_by_side(found: list[Line]) -> str:
    """One row a mark, with a pair of columns per instruction set, for the documentation."""
    isas = list(dict.fromkeys(line.isa for line in found))
    header = ["what"]
    for isa in isas:
        header += [f"{isa}: wanted", "measured"]
    cells = []
    for what in dict.fromkeys(line.what for line in found):
        row = [what]
        for isa in isas:
            line = next((x for x in found if (x.isa, x.what) == (isa, what)), None)
            row += ["", ""] if line is None else [line.wanted_text, outcome(line)]
        cells.append(row)
    return f"{measure.table(header, cells)}\n\n{summary(found)}"


def outcome(line: Line) -> str:
    """The figure, and a word where it is not enough."""
    if line.figure is None:
        return "not measured" + (f": {line.note}" if line.note else "")
    return line.figure_text + (" SHORTFALL" if line.verdict == "SHORTFALL" else "")
