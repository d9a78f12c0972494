"""A whole run, and the JSON that keeps it with one result per line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.attention import result as attention_result
from bench.attention.result import Result
from bench.models import result as model_result
from bench.models.result import InferenceResult, ModelResult

# Key in `Record.runs` of the run that measured the models; the other keys begin with an
# instruction set.
MODELS = "models"
UNKNOWN_COMMIT = "unknown"


@dataclass(frozen=True)
class Repeat:
    """The figure of a target in an earlier run of the commit that is recorded now."""

    isa: str
    what: str
    figure: float
    quartiles: tuple[float, float] | None
    commit: str
    date: str

    @staticmethod
    def from_row(row: dict[str, Any]) -> Repeat:
        quartiles = row["quartiles"]
        return Repeat(**(row | {"quartiles": None if quartiles is None else tuple(quartiles)}))


@dataclass
class Record:
    """Results, and the runs that measured them.

    Attributes:
        runs: machine, commit, date, rounds and rates of each run. The key is the instruction set,
            followed by the group if only that group was measured (`avx2 decode`), or MODELS.
        models: training steps of the models.
        inference: their forecasts; measured in the same run.
        repeats: figures of targets that later runs of the same commit replaced.
    """

    runs: dict[str, dict[str, Any]]
    results: list[Result]
    models: list[ModelResult] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    inference: list[InferenceResult] = field(default_factory=list)

    @property
    def isas(self) -> list[str]:
        """The instruction sets at which the operator was measured."""
        return list(dict.fromkeys(_isa(run) for run in self.runs if run != MODELS))

    def of(self, isa: str, group: str = "") -> list[Result]:
        """The results of one instruction set, or of one of its groups."""
        return [r for r in self.results if r.isa == isa and group in ("", r.point.group)]

    def runs_of(self, results: list[Result]) -> dict[str, dict[str, Any]]:
        """The runs that measured these results, by key."""
        return {run: self.runs[run] for run in dict.fromkeys(result.run for result in results)}

    def usable_cores(self, isa: str) -> int:
        """The cores that the process at `isa` could use."""
        return max(run["usable_cores"] for name, run in self.runs.items() if _isa(name) == isa)

    def merged(self, newer: Record, group: str = "") -> Record:
        """This record with everything that `newer` measured taken from there.

        If `newer` measured only `group`, the other groups stay, and its results refer to a run of
        their own, so that each figure keeps the commit and the date at which it was measured.
        """

        def key(run: str) -> str:
            return run if run == MODELS or not group else f"{run} {group}"

        found = [replace(r, part=group or r.part) for r in newer.results]
        measured = {(result.isa, result.point) for result in found}
        kept = [
            result
            for result in self.results
            if result.isa not in newer.isas
            or (group and (result.isa, result.point) not in measured)
        ]
        used = {result.run for result in kept}
        runs = {
            run: about
            for run, about in self.runs.items()
            if run in used or _isa(run) not in newer.isas
        }
        runs |= {key(run): about for run, about in newer.runs.items()}
        of_models = newer if MODELS in newer.runs else self
        return Record(runs, [*kept, *found], of_models.models, self.repeats, of_models.inference)

    def write(self, path: Path, short: bool = False) -> None:
        """As JSON; `short` omits what `read` can restore."""
        lists = {"models": [result.row() for result in self.models]} if self.models else {}
        if self.inference:
            lists["inference"] = [result.row() for result in self.inference]
        if self.repeats:
            lists["repeats"] = [asdict(repeat) for repeat in self.repeats]
        lists["results"] = [result.row(short) for result in self.results]
        write_rows({"runs": self.runs}, lists, path)


def _isa(run: str) -> str:
    """`avx2 decode` -> `avx2`."""
    return run.split(" ")[0]


def commit_of(run: dict[str, Any]) -> str:
    """The commit that a run measured; records made before commits were kept have none."""
    return run.get("machine", {}).get("commit") or UNKNOWN_COMMIT


def read(path: Path) -> Record:
    """The inverse of `Record.write`."""
    data = json.loads(path.read_text())
    return Record(
        data["runs"],
        [attention_result.from_row(row) for row in data["results"]],
        [model_result.from_row(row) for row in data.get("models", [])],
        [Repeat.from_row(row) for row in data.get("repeats", [])],
        [model_result.inference_from_row(row) for row in data.get("inference", [])],
    )


def write_rows(head: dict[str, Any], lists: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """JSON with one row of each list per line, so that a new measurement makes a readable diff."""
    text = json.dumps(head, indent=1)[:-2]
    for name, rows in lists.items():
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        text += f',\n "{name}": [\n  {lines}\n ]' if rows else f',\n "{name}": []'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n}\n")
