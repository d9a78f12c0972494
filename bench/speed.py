"""Measures the points of `points.py` at one instruction set; `bench/run.py` starts this.

The environment has to hold torch, MKL and this project to that instruction set already: they choose
it once, while they are loaded. In every round each candidate is called in turn, then the core is
probed: how many multiply-adds it does at that moment, and how fast MKL multiplies matrices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import candidates
import flash_attention
import measure
import peak
import points
import progress
import report
import torch
from measure import rounded
from points import Point
from results import Record, Result

FMA = "peak: fma"
PRODUCT = "peak: product"
# The overhead is some microseconds of one call, so more rounds cost nothing; block sizes have no
# mark to reach, and half of the rounds show their effect.
TWO_CORES = ("threads", "decode")
ROUNDS_FACTOR = {"overhead": 4.0, "block size": 0.5}


class Machine:
    """The probes of the core, and the rates found by them alone."""

    def __init__(self, build: Path, isa: str) -> None:
        library = peak.load(build)
        computed = set(points.COMPUTED.values())
        self.fma = {dtype: peak.fma(library, dtype, isa) for dtype in sorted(computed)}
        self.product = peak.product()

    def probes(self, point: Point) -> dict[str, peak.Probe]:
        """What is called at the end of each round at `point`."""
        found = {FMA: self.fma[points.COMPUTED[point.dtype]]}
        if progress.samples_product(point):
            found[PRODUCT] = self.product
        return found

    def rates(self, rounds: int) -> dict[str, float]:
        """Operations or bytes per second of everything that can be probed."""
        probes = {f"fma {dtype}": probe for dtype, probe in self.fma.items()}
        probes |= {f"product {dtype}": peak.product(dtype) for dtype in self.fma}
        probes["copy"] = peak.copy()
        times = measure.interleaved({name: p.call for name, p in probes.items()}, rounds)
        return {name: p.rate(statistics.median(times[name])) for name, p in probes.items()}


def measure_point(point: Point, isa: str, machine: Machine, rounds: int) -> Result:
    """Takes turns at one point."""
    probes = machine.probes(point)
    measure.pin(2 if point.group in TWO_CORES else 1)
    torch.manual_seed(0)
    with torch.set_grad_enabled(point.direction != "forward"):
        calls = candidates.calls(point)
        names = list(calls)
        calls |= {name: probe.call for name, probe in probes.items()}
        factor = ROUNDS_FACTOR.get(point.group, 1.0)
        times = measure.interleaved(calls, max(3, round(rounds * factor)))
    measure.pin(1)
    subject, *others = names
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    rates = {name: probe.rate(medians[name]) for name, probe in probes.items()}
    return Result(
        isa=isa,
        point=point,
        seconds={name: medians[name] for name in names},
        ratio={n: measure.quartiles_of_ratio(times[n], times[subject]) for n in others},
        fma=rates[FMA],
        product=rates.get(PRODUCT),
    )


def progress_line(result: Result, left: str) -> str:
    """One finished point."""
    ratios = ", ".join(f"{name} {q[1]:.2f}x" for name, q in result.ratio.items())
    time = measure.seconds_text(result.seconds[result.subject])
    share = f", {result.percent_of_peak():.0f}% of peak" if result.product is not None else ""
    return f"[{result.isa} {left}] {result.point.label}: {time}{share}; {ratios}"


def describe_run(isa: str, rounds: int, rates: dict[str, float]) -> dict[str, Any]:
    """Where and how, for the record."""
    where = measure.machine()
    kernels = flash_attention.build_info().active
    if kernels != isa:
        sys.exit(f"bench/speed.py: expected the kernels {isa} to be active, got {kernels}")
    return {
        "where": f"{measure.describe(where)}; kernels of this project: {kernels}",
        "machine": where,
        "usable_cores": len(measure.CORES),
        "rounds": rounds,
        "rates": {name: rounded(rate) for name, rate in rates.items()},
    }


def chosen(args: argparse.Namespace, isa: str) -> list[Point]:
    """The points that the options ask for, without those that this machine has no cores for."""
    if args.length is not None:
        return points.own_shape(args.length, args.head_dim, args.heads, args.batch, args.dtype)
    plan = points.quick_plan() if args.quick else points.plan(isa, args.full)
    if args.group:
        plan = [p for p in plan if f"{p.group} {p.dtype}".startswith(args.group)]
    return [p for p in plan if p.group not in TWO_CORES or len(measure.CORES) > 1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What decides which points are measured, and how; shared with bench/run.py."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a few small points, 3 rounds: seconds")
    which.add_argument("--full", action="store_true", help="float64 at every length, too")
    which.add_argument("--length", type=int, help="one shape of your own, of this length")
    parser.add_argument(
        "--group", default="", help='only points like "decode", or "grid bfloat16": minutes'
    )
    parser.add_argument("--head-dim", type=int, default=64, help="with --length")
    parser.add_argument("--heads", type=int, default=8, help="with --length")
    parser.add_argument("--batch", type=int, default=1, help="with --length")
    parser.add_argument("--dtype", choices=list(points.SIZES), default="float32")
    parser.add_argument("--rounds", type=int, help="samples of each candidate; 15")
    parser.add_argument("--build", type=Path, default=measure.ROOT / "build")


def rounds_of(args: argparse.Namespace) -> int:
    """As asked for, or by default."""
    return args.rounds or (3 if args.quick else 15)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--isa", choices=["avx2", "avx512"], required=True)
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument("--later", type=float, default=0.0, help="expected seconds of what follows")
    args = parser.parse_args()
    rounds = rounds_of(args)
    measure.pin(1)
    machine = Machine(args.build, args.isa)
    run = describe_run(args.isa, rounds, machine.rates(rounds))
    print(run["where"])
    print(report.rates_text(run["rates"]), flush=True)
    plan = chosen(args, args.isa)
    seconds = [progress.expected_seconds([point], rounds) for point in plan]
    left = progress.Progress(seconds, args.later)
    record = Record({args.isa: run}, [])
    for point in plan:
        record.results.append(measure_point(point, args.isa, machine, rounds))
        print(progress_line(record.results[-1], left.advance()), flush=True)
        record.write(args.json)  # what is measured is kept, whatever happens next
    return 0


if __name__ == "__main__":
    sys.exit(main())
