"""What was measured at a point or of a model, and the JSON that keeps it, one result a line."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import model_results
from measure import rounded
from model_results import ModelResult
from points import Point

# In the place of an instruction set: the run that measured the models.
MODELS = "models"
POINT_FIELDS = tuple(f.name for f in fields(Point))
DEFAULTS = {f.name: f.default for f in fields(Point) if f.default is not MISSING}


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
    """A whole run: where and how each instruction set and the models were measured, and results."""

    runs: dict[str, dict[str, Any]]
    results: list[Result]
    models: list[ModelResult] = field(default_factory=list)

    @property
    def isas(self) -> list[str]:
        """The instruction sets at which the operator was measured."""
        return [name for name in self.runs if name != MODELS]

    def of(self, isa: str, group: str = "") -> list[Result]:
        """The results of one instruction set, and of one group of points if named."""
        return [r for r in self.results if r.isa == isa and group in ("", r.point.group)]

    def merged(self, newer: Record, group: str = "") -> Record:
        """This record with the instruction sets and models that `newer` has taken from there.

        Of a run of some points alone, those of `group`, only these are taken; where and how the
        others were measured stays what it was.
        """
        measured = {(result.isa, result.point) for result in newer.results}
        kept = [
            result
            for result in self.results
            if result.isa not in newer.runs
            or (group and (result.isa, result.point) not in measured)
        ]
        models = newer.models if MODELS in newer.runs else self.models
        runs = newer.runs | self.runs if group else self.runs | newer.runs
        return Record(runs, [*kept, *newer.results], models)

    def write(self, path: Path, short: bool = False) -> None:
        lists = {"models": [result.row() for result in self.models]} if self.models else {}
        lists["results"] = [result.row(short) for result in self.results]
        write_rows({"runs": self.runs}, lists, path)


def read(path: Path) -> Record:
    """What `Record.write` wrote."""
    data = json.loads(path.read_text())
    models = [model_results.from_row(row) for row in data.get("models", [])]
    return Record(data["runs"], [from_row(row) for row in data["results"]], models)


def write_rows(head: dict[str, Any], lists: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """JSON with one row of each list a line, so that a new measurement reads well as a diff."""
    text = json.dumps(head, indent=1)[:-2]
    for name, rows in lists.items():
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        text += f',\n "{name}": [\n  {lines}\n ]' if rows else f',\n "{name}": []'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n}\n")
