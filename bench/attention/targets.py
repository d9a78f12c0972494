"""The speed targets of the operator, and what a record says about each.

Pure functions of a `Record`. A ratio is a rival's time over that of flash unless stated otherwise,
both on one thread at one instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.attention import points, workload
from bench.attention.points import Point
from bench.attention.result import Result
from bench.common import host
from bench.report.records import Record
from bench.report.verdict import Figure, Line, mean_figure, with_repeats

# (dtype, direction) -> instruction set -> lower bound of the geometric mean over the grid.
GRID_MEANS: dict[tuple[str, str], dict[str, float]] = {
    ("float32", "forward"): {"avx2": 1.65, "avx512": 1.85},
    ("float32", "backward"): {"avx2": 1.70, "avx512": 1.80},
    ("float64", "forward"): {"avx2": 1.6},
    ("float64", "backward"): {"avx2": 1.6},
    ("bfloat16", "forward"): dict.fromkeys(host.ISAS, 1.6),
    ("bfloat16", "backward"): dict.fromkeys(host.ISAS, 1.3),
}
# (dtype, direction) -> lower bound of every point of the grid.
GRID_WORST = {
    ("float32", "forward"): 1.0,
    ("float32", "backward"): 1.0,
    ("bfloat16", "forward"): 1.1,
    ("bfloat16", "backward"): 1.0,
}
DECODE_OF_COPY = 90.0
WINDOW_OVER_FULL = 15.0
FORWARD_OF_PEAK = 80.0
AT_LEAST_1024 = range(1024, max(points.LENGTHS) + 1)
# (causal, lengths) -> lower bound of the share of the peak, in both directions.
OF_PEAK = {
    (False, range(128, 129)): 80.0,
    (False, range(512, max(points.LENGTHS) + 1)): 90.0,
    (True, AT_LEAST_1024): 85.0,
}
FORECAST_MEAN = 2.0
TWO_THREADS = 1.8
OVERHEAD = 1.0
OPTION_AGAINST_TORCH = 3.0
OPTION_OVER_PLAIN = 1.3
STANDARD = 1.5
STANDARD_AT_1024 = 2.0


def place(result: Result) -> str:
    """Which point of its group, for a note."""
    point = result.point
    causal = ", causal" if point.causal else ""
    return f"L {point.length} D {point.head_dim}{causal}"


def ratio(results: list[Result], rival: str, factor: float = 1.0) -> Figure | None:
    """The ratio of the only point, or None if it was not measured."""
    if not results:
        return None
    low, median, high = (factor * x for x in results[0].ratio[rival])
    return Figure(median, (low, high))


def mean(results: list[Result]) -> Figure | None:
    """Geometric mean of the ratios against torch."""
    return mean_figure([result.ratio["torch"] for result in results])


def worst(results: list[Result]) -> tuple[Figure | None, str]:
    """The smallest ratio against torch, and where it is."""
    if not results:
        return None, ""
    found = min(results, key=lambda result: result.times_as_fast("torch"))
    return ratio([found], "torch"), f"at {place(found)}"


def grid_lines(record: Record, isa: str) -> Iterator[Line]:
    """Means over head_dim, length and mask, and the worst point."""
    for (dtype, direction), wanted in GRID_MEANS.items():
        if isa not in wanted:
            continue
        found = [
            result
            for result in record.of(isa, "grid")
            if result.point.dtype == dtype and result.point.direction == direction
        ]
        group, what = f"grid {dtype}", f"{direction}, {dtype}"
        note = f"{len(found)} points"
        text = f"{what}: mean against torch"
        yield Line(isa, group, text, mean(found), wanted[isa], note=note)
        least = GRID_WORST.get((dtype, direction))
        if least is not None:
            figure, note = worst(found)
            text = f"{what}: worst point against torch"
            yield Line(isa, group, text, figure, least, note=note)


@dataclass(frozen=True)
class ShareTarget:
    """A lower bound, in percent, of the share of the peak in float32."""

    direction: str
    head_dim: int
    causal: bool
    lengths: range
    wanted: float

    @property
    def what(self) -> str:
        causal = ", causal" if self.causal else ""
        which = "lowest share of the peak"
        length = f"L >= {self.lengths.start}"
        if len(self.lengths) == 1:
            which, length = "share of the peak", f"L {self.lengths.start}"
        return f"{self.direction}{causal}, D {self.head_dim}, {length}: {which}"

    def judges(self, point: Point) -> bool:
        return (
            (point.group, point.dtype) == ("grid", "float32")
            and (point.direction, point.head_dim) == (self.direction, self.head_dim)
            and point.causal == self.causal
            and point.length in self.lengths
        )


def share_targets() -> Iterator[ShareTarget]:
    """Of short and of long sequences."""
    yield ShareTarget("forward", 64, False, AT_LEAST_1024, FORWARD_OF_PEAK)
    for direction in ("forward", "backward"):
        for head_dim in (64, 128):
            for (causal, lengths), wanted in OF_PEAK.items():
                yield ShareTarget(direction, head_dim, causal, lengths, wanted)


def share_lines(record: Record, isa: str) -> Iterator[Line]:
    """Against the multiply-adds that the core did in the same rounds."""
    for target in share_targets():
        found = [result for result in record.of(isa, "grid") if target.judges(result.point)]
        figure, note = None, ""
        if found:
            lowest = min(found, key=lambda result: result.percent_of_limit)
            note = f"at {place(lowest)}"
            share = lowest.share_of_limit
            quartiles = None if share is None else (100 * share[0], 100 * share[2])
            figure = Figure(lowest.percent_of_limit, quartiles)
        what, wanted = target.what, target.wanted
        yield Line(isa, "grid float32", what, figure, wanted, unit="%", note=note)


def standard_lines(record: Record, isa: str) -> Iterator[Line]:
    """Forward, D 64, no mask, against standard attention."""
    for length in workload.GUIDE_LENGTHS:
        found = [
            result
            for result in record.of(isa, "grid")
            if "standard" in result.ratio
            and result.point.length == length
            and not result.point.causal
        ]
        wanted = STANDARD_AT_1024 if length == 1024 else STANDARD
        what = f"forward, D 64, L {length}: against standard"
        yield Line(isa, "grid float32", what, ratio(found, "standard"), wanted)


def forecast_lines(record: Record, isa: str) -> Iterator[Line]:
    """The short sequences of a forecaster."""
    for direction in ("forward", "backward"):
        found = [r for r in record.of(isa, "forecast") if r.point.direction == direction]
        least, where = worst(found)
        note = "" if least is None else f"worst {least.value:.2f}x {where}"
        what = f"{direction}, forecasting shapes: mean against torch"
        yield Line(isa, "forecast float32", what, mean(found), FORECAST_MEAN, note=note)


def overhead_lines(record: Record, isa: str) -> Iterator[Line]:
    """Tiny inputs."""
    for direction in ("forward", "recorded", "training"):
        found = [r for r in record.of(isa, "overhead") if r.point.direction == direction]
        what = f"overhead at L 4 D 8, {points.DIRECTIONS[direction]}: against torch"
        yield Line(isa, "overhead float32", what, ratio(found, "torch"), OVERHEAD)


def thread_lines(record: Record, isa: str) -> Iterator[Line]:
    """Two threads against one, flash alone."""
    note = "one core" if record.usable_cores(isa) < 2 else ""
    for heads, length in points.THREAD_SHAPES:
        for direction in ("forward", "backward"):
            found = [
                result
                for result in record.of(isa, "threads")
                if (result.point.heads, result.point.length) == (heads, length)
                and result.point.direction == direction
            ]
            what = f"{direction}, B*H {heads}, L {length}, D 64: two threads against one"
            figure = ratio(found, "one thread")
            yield Line(isa, "threads float32", what, figure, TWO_THREADS, note=note)


def decode_lines(record: Record, isa: str) -> Iterator[Line]:
    """One query over a long KV cache, as a share of the bandwidth of a copy."""
    note = "one core" if record.usable_cores(isa) < 2 else ""
    wanted = [p for p in points.decode() if p.threads == 2]
    for point in wanted:
        found = [r for r in record.of(isa, "decode") if r.point == point]
        dtype = "" if point.dtype == "float32" else f"{point.dtype}, "
        shape = f"{dtype}{point.length} keys, D {point.head_dim}"
        what = f"decode, {shape}, two threads: share of a copy"
        figure = ratio(found, "copy", 100.0)
        yield Line(isa, point.tag, what, figure, DECODE_OF_COPY, unit="%", note=note)


def window_lines(record: Record, isa: str) -> Iterator[Line]:
    """A narrow window against all keys."""
    for direction in ("forward", "training"):
        found = [r for r in record.of(isa, "window") if r.point.direction == direction]
        what = f"{points.DIRECTIONS[direction]}, window {points.WINDOW} of {points.WINDOW_LENGTH}"
        figure = ratio(found, "full")
        yield Line(isa, "window float32", f"{what}: against full", figure, WINDOW_OVER_FULL)


def option_lines(record: Record, isa: str) -> Iterator[Line]:
    """Each option against torch with the same option, and against the plain call."""
    for group, names, rival, wanted, text in (
        ("option/torch", points.RIVAL_OPTIONS, "torch", OPTION_AGAINST_TORCH, "against torch's"),
        ("option/plain", points.OPTIONS, "option", OPTION_OVER_PLAIN, "time over the plain call"),
    ):
        for name in names:
            found = [r for r in record.of(isa, group) if r.point.option == name]
            what, figure = f"option {name}: {text}", ratio(found, rival)
            yield Line(isa, f"{group} float32", what, figure, wanted, at_least=rival == "torch")


PARTS: tuple[Callable[[Record, str], Iterator[Line]], ...] = (
    grid_lines,
    share_lines,
    standard_lines,
    forecast_lines,
    thread_lines,
    overhead_lines,
    option_lines,
    window_lines,
    decode_lines,
)


def lines(record: Record, group: str = "") -> list[Line]:
    """Every target of `group`, a prefix of `Point.tag`, instruction set by instruction set.

    Only of groups that are measured at the instruction set.
    """
    found = []
    for isa in record.isas:
        groups = {point.tag for point in points.plan(isa) if point.tag.startswith(group)}
        found += [x for part in PARTS for x in part(record, isa) if x.group in groups]
    return with_repeats(found, record.repeats)
