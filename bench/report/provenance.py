"""The lines below a table: where, when and at which commit its figures were measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.attention.result import Result
from bench.report.records import Record, commit_of

Runs = dict[str, dict[str, Any]]


def of_runs(runs: Runs) -> list[str]:
    """One line per run, and a sentence if they measured different commits."""
    lines = []
    for name, run in runs.items():
        _, _, group = name.partition(" ")
        lines.append(f"Measured{f' ({group} only)' if group else ''}: {run['where']}.")
    commits = list(dict.fromkeys(commit_of(run) for run in runs.values()))
    if len(commits) > 1:
        lines.append(f"These figures were recorded at different commits: {', '.join(commits)}.")
    return lines


def of_results(record: Record, results: Iterable[Result]) -> list[str]:
    """For a table of these results."""
    return of_runs(record.runs_of(list(results)))
