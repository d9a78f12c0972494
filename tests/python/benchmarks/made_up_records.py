"""Made-up records for the tests of `bench`, which meet every target, or all but some."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from bench import run
from bench.attention import points, targets
from bench.attention.points import Point
from bench.attention.result import Result
from bench.report.records import Record
from bench.report.verdict import MISSED

# Candidates of each group, with times relative to the subject's that meet all targets.
CANDIDATES = {
    "grid": {"flash": 1.0, "torch": 2.5},
    "forecast": {"flash": 1.0, "torch": 2.5},
    "overhead": {"flash": 1.0, "torch": 2.5},
    "threads": {"two threads": 1.0, "one thread": 1.9},
    "option/torch": {"flash": 1.0, "torch": 3.5},
    "option/plain": {"plain": 1.0, "option": 1.1},
    "block size": {"default": 1.0, "32": 1.1, "sqrt(L)": 0.9},
    "window": {"window": 1.0, "full": 20.0},
    "float32 parts": {"six products": 1.0, "three products": 0.7, "avx512": 1.5, "torch": 1.9},
    "decode": {"flash": 1.0, "torch": 1.5, "copy": 0.95},
}
PEAK = 100e9


def result_of(point: Point, isa: str, percent: float = 95.0) -> Result:
    """The subject at `percent` of the peak, the others as in CANDIDATES; as in an older record,
    without the spread of the peak."""
    seconds = point.flops / (PEAK * percent / 100)
    times = {name: seconds * factor for name, factor in CANDIDATES[point.group].items()}
    if points.has_standard(point):
        times["standard"] = 2.5 * seconds
    subject = next(iter(times))
    ratio = {name: 3 * (times[name] / seconds,) for name in times if name != subject}
    return Result(isa, point, times, ratio, fma=PEAK, product=0.9 * PEAK)


def record_of(*isas: str, cores: int = 2, commit: str | None = "aaaaaaa") -> Record:
    """A whole run that meets every target."""
    rates = {"fma float32": PEAK, "fma float64": PEAK / 2, "copy": 20e9}
    about = {
        "where": f"a machine, commit {commit}",
        "machine": {"commit": commit, "date": "2026-01-02"},
        "usable_cores": cores,
        "rounds": 15,
        "rates": rates,
    }
    found = [
        result_of(point, isa)
        for isa in isas
        for point in points.plan(isa)
        if point.threads <= cores
    ]
    return Record({isa: about for isa in isas}, found)


def slower(record: Record, candidate: str, factor: float, **wanted: object) -> Record:
    """The record with `candidate` slower by `factor` at all points with these values."""
    changed = []
    for result in record.results:
        if all(getattr(result.point, name) == value for name, value in wanted.items()):
            seconds = dict(result.seconds)
            seconds[candidate] *= factor
            base = seconds[result.subject]
            ratio = {name: 3 * (seconds[name] / base,) for name in result.ratio}
            result = replace(result, seconds=seconds, ratio=ratio)
        changed.append(result)
    return Record(record.runs, changed)


def shortfalls(record: Record) -> list[str]:
    """The targets that the record misses."""
    return [line.what for line in targets.lines(record) if line.verdict == MISSED]


def run_group(monkeypatch: pytest.MonkeyPatch, group: str, *options: object) -> int:
    """`bench/run.py --group` on made-up results at AVX2."""

    def run_isa(*_: object) -> Record:
        record = record_of("avx2")
        record.results = [r for r in record.results if r.point.tag.startswith(group)]
        return record

    monkeypatch.setattr(run, "supported", lambda: ["avx2"])
    monkeypatch.setattr(run, "run_isa", run_isa)
    monkeypatch.setattr(sys, "argv", ["run.py", f"--group={group}", *map(str, options)])
    return run.main()
