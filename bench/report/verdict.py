"""A target, the figures measured for it, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.common import formatting

if TYPE_CHECKING:
    from bench.report.records import Repeat

MISSED = "SHORTFALL"


@dataclass(frozen=True)
class Figure:
    """A median with its quartiles, where the record has them."""

    value: float
    quartiles: tuple[float, float] | None = None

    def text(self, unit: str) -> str:
        """One digit more than the targets have: a near miss must not look like the target."""
        return f"{self.value:.1f}%" if unit == "%" else f"{self.value:.3f}x"

    def quartiles_text(self, unit: str) -> str:
        if self.quartiles is None:
            return "-"
        digits = 0 if unit == "%" else 2
        low, high = self.quartiles
        return f"{low:.{digits}f}-{high:.{digits}f}"


@dataclass(frozen=True)
class Line:
    """One target at one instruction set.

    Attributes:
        group: the points it judges, as `Point.tag` or a prefix of it.
        measured: the latest figure; None if nothing was measured.
        wanted: the target; a lower bound if `at_least`, otherwise an upper bound.
        repeats: figures of earlier runs of the same commit.
    """

    isa: str
    group: str
    what: str
    measured: Figure | None
    wanted: float
    at_least: bool = True
    unit: str = "x"
    note: str = ""
    repeats: tuple[Figure, ...] = ()

    @property
    def worst(self) -> Figure | None:
        """The figure that is judged and shown: the worst of all runs."""
        if self.measured is None:
            return None
        choose = min if self.at_least else max
        return choose((self.measured, *self.repeats), key=lambda figure: figure.value)

    @property
    def figure(self) -> float | None:
        return None if self.worst is None else self.worst.value

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        reached = self.figure >= self.wanted if self.at_least else self.figure <= self.wanted
        return "pass" if reached else MISSED

    @property
    def wanted_text(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.wanted:g}{self.unit}"

    @property
    def figure_text(self) -> str:
        return "-" if self.worst is None else self.worst.text(self.unit)

    @property
    def quartiles_text(self) -> str:
        return "-" if self.worst is None else self.worst.quartiles_text(self.unit)

    @property
    def note_text(self) -> str:
        """The note, and how many runs the figure is the worst of."""
        runs = f"worst of {1 + len(self.repeats)} runs" if self.repeats else ""
        return "; ".join(text for text in (self.note, runs) if text)


def geometric_mean(values: Iterable[float]) -> float | None:
    """None if there are no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def mean_figure(ratios: list[tuple[float, float, float]]) -> Figure | None:
    """Geometric means of the medians and of either quartile."""
    if not ratios:
        return None
    low, median, high = (geometric_mean(values) for values in zip(*ratios, strict=True))
    return Figure(median, (low, high))


def with_repeats(lines: Iterable[Line], repeats: Sequence[Repeat]) -> list[Line]:
    """Each line with the earlier figures recorded for it."""
    return [
        replace(
            line,
            repeats=tuple(
                Figure(repeat.figure, repeat.quartiles)
                for repeat in repeats
                if (repeat.isa, repeat.what) == (line.isa, line.what)
            ),
        )
        for line in lines
    ]


def summary(lines: list[Line]) -> str:
    """How many targets are met, in one sentence."""
    verdicts = [line.verdict for line in lines]
    short, missing = verdicts.count(MISSED), verdicts.count("not measured")
    judged = len(lines) - missing
    text = f"{judged - short} of {judged} targets reached"
    text += f", {short} {MISSED}{'S' if short > 1 else ''}" if short else ""
    return text + (f"; {missing} not measured" if missing else "") + "."


def report(lines: list[Line]) -> str:
    """A table with one row per line, and the summary."""
    header = ["ISA", "what", "verdict", "wanted", "figure", "quartiles", "note"]
    cells = [
        [
            line.isa,
            line.what,
            line.verdict,
            line.wanted_text,
            line.figure_text,
            line.quartiles_text,
            line.note_text,
        ]
        for line in lines
    ]
    # The last column is text, so all columns are aligned to the left.
    return f"{formatting.table(header, cells, left=len(header))}\n\n{summary(lines)}"


def side_by_side(lines: list[Line]) -> str:
    """One row per target and three columns per instruction set, for the documentation."""
    isas = list(dict.fromkeys(line.isa for line in lines))
    header = ["what"]
    for isa in isas:
        header += [f"{isa}: wanted", "measured", "quartiles"]
    cells = []
    for what in dict.fromkeys(line.what for line in lines):
        row = [what]
        for isa in isas:
            line = next((x for x in lines if (x.isa, x.what) == (isa, what)), None)
            row += [""] * 3 if line is None else outcome(line)
        cells.append(row)
    return f"{formatting.table(header, cells)}\n\n{summary(lines)}"


def outcome(line: Line) -> list[str]:
    """Target, figure with verdict and number of runs, and quartiles."""
    if line.worst is None:
        text = line.verdict + (f": {line.note}" if line.note else "")
        return [line.wanted_text, text, ""]
    text = line.figure_text + (f" {MISSED}" if line.verdict == MISSED else "")
    text += f" ({1 + len(line.repeats)} runs)" if line.repeats else ""
    return [line.wanted_text, text, line.quartiles_text]
