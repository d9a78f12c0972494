"""Repeated runs of one commit: a target counts as met only if every one of them meets it."""

from __future__ import annotations

from bench.attention import targets
from bench.report import model_report
from bench.report.records import MODELS, UNKNOWN_COMMIT, Record, Repeat, commit_of
from bench.report.verdict import Line


def all_lines(record: Record) -> list[Line]:
    """The targets of the operator and of the models."""
    return [*targets.lines(record), *model_report.lines(record, ())]


def run_of(record: Record, line: Line) -> dict:
    """The run that measured a line, or nothing if there are several."""
    if line.group == MODELS:
        return record.runs.get(MODELS, {})
    results = [r for r in record.of(line.isa) if r.point.tag.startswith(line.group)]
    runs = list(record.runs_of(results).values())
    return runs[0] if len(runs) == 1 else {}


def same_commit(older: Record, newer: Record, line: Line) -> bool:
    """Whether both measured the line at one commit; uncommitted changes may be any."""
    before, now = (commit_of(run_of(record, line)) for record in (older, newer))
    return before == now != UNKNOWN_COMMIT and not now.endswith("+changes")


def kept(older: Record, newer: Record) -> list[Repeat]:
    """The earlier figures of every target, once `newer` has been measured.

    A target that `newer` did not measure keeps its repeats. One that `newer` measured again at the
    same commit keeps them too, and the latest figure joins them. Another commit drops them.
    """
    measured = {(x.isa, x.what) for x in all_lines(newer) if x.measured is not None}
    found = []
    for line in all_lines(older):
        again = (line.isa, line.what) in measured
        if again and not same_commit(older, newer, line):
            continue
        found += [r for r in older.repeats if (r.isa, r.what) == (line.isa, line.what)]
        if again and line.measured is not None:
            run = run_of(older, line)
            date = run["machine"]["date"]
            figure = line.measured
            found.append(
                Repeat(line.isa, line.what, figure.value, figure.quartiles, commit_of(run), date)
            )
    return found


def merged(older: Record, newer: Record, group: str = "") -> Record:
    """`older.merged(newer, group)` with the figures that it replaces kept as repeats."""
    record = older.merged(newer, group)
    record.repeats = kept(older, newer)
    return record
