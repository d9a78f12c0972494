"""The lines below a table: where, when and at which commit its figures were measured."""

from __future__ import annotations

from typing import Any

from bench.report.records import commit_of

Runs = dict[str, dict[str, Any]]


def of_runs(runs: Runs) -> list[str]:
    """Where the runs were measured, and a sentence if they measured different commits.

    One line per run. A group that was measured later on the same machine is added to the line of
    the whole run, with its commit and date.
    """
    lines = []
    for name, run in runs.items():
        isa, _, group = name.partition(" ")
        if not group:
            lines.append(f"Measured: {run['where']}.{later_groups(name, runs)}")
        elif isa not in runs or not same_machine(run, runs[isa]):
            lines.append(f"Measured ({group} only): {run['where']}.")
    commits = list(dict.fromkeys(commit_of(run) for run in runs.values()))
    if len(commits) > 1:
        lines.append(f"These figures were recorded at different commits: {', '.join(commits)}.")
    return lines


def later_groups(isa: str, runs: Runs) -> str:
    """The groups measured on their own on the machine of the whole run, by commit and date."""
    found: dict[str, list[str]] = {}
    for name, run in runs.items():
        if name.startswith(f"{isa} ") and same_machine(run, runs[isa]):
            version = f"commit {commit_of(run)}, {run['machine']['date']}"
            found.setdefault(version, []).append(name.removeprefix(f"{isa} "))
    parts = [f"{', '.join(groups)} ({version})" for version, groups in found.items()]
    return f" Measured on their own: {'; '.join(parts)}." if parts else ""


def same_machine(run: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs differ in commit and date alone."""
    first, second = (
        {name: x for name, x in about.get("machine", {}).items() if name not in ("commit", "date")}
        for about in (run, other)
    )
    return "machine" in run and first == second
