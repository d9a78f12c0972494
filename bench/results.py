"""What was measured at a point, and the JSON that keeps it, one result a line."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from points import Point

POINT_FIELDS = tuple(field.name for field in fields(Point))
DEFAULTS = {f.name: f.default for f in fields(Point) if f.default is not MISSING}


def rounded(number: float) -> float:
    """Four digits: more than a repetition of the measurement would confirm."""
    return float(f"{number:.4g}")


@dataclass(frozen=True)
class Result:
    """One point at one instruction set.

    Attributes:
        seconds: median time of one call of each candidate; the first is the subject.
        ratio: of every other candidate, its time over the subject's, within one round each: lower
            quartile, median, upper quartile.
        fma: operations per second of multiply-adds alone, median of the rounds of this point.
        product: the same of torch.mm, where it was sampled.
    """

    isa: str
    point: Point
    seconds: dict[str, float]
    ratio: dict[str, tuple[float, float, float]]
    fma: float
    product: float | None = None

    @property
    def subject(self) -> str:
        return next(iter(self.seconds))

    def times_as_fast(self, rival: str | None = None) -> float:
        """The median ratio of `rival`, or of the only one."""
        return self.ratio[rival or next(iter(self.ratio))][1]

    def rate(self, candidate: str | None = None) -> float:
        """Operations per second."""
        return self.point.flops / self.seconds[candidate or self.subject]

    def percent_of_peak(self, candidate: str | None = None) -> float:
        """Of the multiply-adds that the core did in the same rounds."""
        return 100 * self.rate(candidate) / self.fma

    def row(self, short: bool = False) -> dict[str, Any]:
        """For JSON; `short` leaves out what `from_row` finds again."""
        point = asdict(self.point)
        if short:
            point = {name: x for name, x in point.items() if DEFAULTS.get(name) != x}
        row: dict[str, Any] = {"isa": self.isa, **point}
        row["seconds"] = {name: rounded(x) for name, x in self.seconds.items()}
        row["ratio"] = {name: [rounded(x) for x in q] for name, q in self.ratio.items()}
        row["fma_gflops"] = rounded(self.fma / 1e9)
        if self.product is not None:
            row["product_gflops"] = rounded(self.product / 1e9)
        if not short:
            row["flops"] = self.point.flops
            row["bytes"] = self.point.bytes
            row["gflops"] = rounded(self.rate() / 1e9)
            row["percent_of_peak"] = rounded(self.percent_of_peak())
        return row


def from_row(row: dict[str, Any]) -> Result:
    """The result that `Result.row` wrote."""
    product = row.get("product_gflops")
    return Result(
        isa=row["isa"],
        point=Point(**{name: row[name] for name in POINT_FIELDS if name in row}),
        seconds=row["seconds"],
        ratio={name: tuple(quartiles) for name, quartiles in row["ratio"].items()},
        fma=row["fma_gflops"] * 1e9,
        product=None if product is None else product * 1e9,
    )


@dataclass
class Record:
    """A whole run: per instruction set where and how it was measured, and all results."""

    runs: dict[str, dict[str, Any]]
    results: list[Result]

    def of(self, isa: str, group: str = "") -> list[Result]:
        """The results of one instruction set, and of one group of points if named."""
        return [r for r in self.results if r.isa == isa and group in ("", r.point.group)]

    def merged(self, newer: Record) -> Record:
        """This record with the instruction sets that `newer` has taken from there."""
        kept = [result for result in self.results if result.isa not in newer.runs]
        return Record(self.runs | newer.runs, [*kept, *newer.results])

    def write(self, path: Path, short: bool = False) -> None:
        rows = [result.row(short) for result in self.results]
        write_rows({"runs": self.runs}, rows, path)


def read(path: Path) -> Record:
    """What `Record.write` wrote."""
    data = json.loads(path.read_text())
    return Record(data["runs"], [from_row(row) for row in data["results"]])


def write_rows(head: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """JSON with one result a line, so that a new measurement reads well as a diff."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "results": [\n  {lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
