"""Measures the points of `points.py` at one instruction set; `bench/run.py` runs this.

The environment must already restrict torch, MKL and this project to that instruction set, which
they choose once, when they are loaded. Each round calls every candidate in turn and probes the
core: its rate of multiply-adds right before and right after the subject, because the clock of a CPU
moves, and that of MKL's matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import flash_attention
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.attention import candidates, expected_time, peak, points
from bench.attention.points import Point
from bench.attention.result import LIMIT_NAMES, Quartiles, Result
from bench.common import formatting, host, progress, timing
from bench.common.formatting import rounded
from bench.report import run_tables
from bench.report.records import Record

FMA = "peak: fma"
FMA_AFTER = "peak: fma after"
PRODUCT = "peak: product"
# Overhead is microseconds per call, so more rounds cost nothing. Block sizes have no target, and
# half of the rounds show their effect.
ROUNDS_FACTOR = {"overhead": 4.0, "block size": 0.5}


class Machine:
    """Probes of the core, and the rates that they find on their own."""

    def __init__(self, build: Path, isa: str, plan: list[Point]) -> None:
        library = peak.load(build)
        dtypes = {points.computed(p.dtype, isa) for p in plan}
        self.isa = isa
        self.fma = {dtype: peak.fma(library, dtype, isa) for dtype in sorted(dtypes)}
        self.product = peak.product()

    def probes(self, point: Point) -> dict[str, peak.Probe]:
        """The probes of each round at `point`."""
        found = {FMA: self.fma[points.computed(point.dtype, self.isa)]}
        if expected_time.samples_product(point):
            found[PRODUCT] = self.product
        return found

    def rates(self, rounds: int) -> dict[str, Quartiles]:
        """FLOP/s or bytes per second of every probe."""
        probes = {f"fma {dtype}": probe for dtype, probe in self.fma.items()}
        probes |= {f"product {dtype}": peak.product(dtype) for dtype in self.fma}
        probes["copy"] = peak.copy()
        times = timing.interleaved({name: p.call for name, p in probes.items()}, rounds)
        return {name: rate_quartiles(p, times[name]) for name, p in probes.items()}


def rate_quartiles(probe: peak.Probe, times: list[float]) -> Quartiles:
    """Of the rates of the rounds."""
    low, median, high = statistics.quantiles(map(probe.rate, times), n=4)
    return low, median, high


def measure_point(point: Point, isa: str, machine: Machine, rounds: int) -> Result:
    """Times the candidates of one point in turns."""
    probes = machine.probes(point)
    host.pin(point.threads)
    torch.manual_seed(0)
    with torch.set_grad_enabled(point.direction != "forward"):
        calls = candidates.calls(point)
        subject, *others = calls
        fma = probes[FMA]
        first = {FMA: fma.call, subject: calls[subject], FMA_AFTER: fma.call}
        last = {name: probe.call for name, probe in probes.items() if name != FMA}
        factor = ROUNDS_FACTOR.get(point.group, 1.0)
        times = timing.interleaved(first | calls | last, max(3, round(rounds * factor)))
    host.pin(1)
    peak_times = [statistics.mean(pair) for pair in zip(times[FMA], times[FMA_AFTER], strict=True)]
    low, median, high = rate_quartiles(fma, peak_times)
    # A sample of the peak is one whole probe, on one core.
    work = point.flops / (point.threads * fma.amount)
    share = tuple(work * x for x in timing.quartiles_of_ratio(peak_times, times[subject]))
    return Result(
        isa=isa,
        point=point,
        seconds={name: statistics.median(times[name]) for name in calls},
        ratio={n: timing.quartiles_of_ratio(times[n], times[subject]) for n in others},
        fma=median,
        fma_quartiles=(low, high),
        product=rate_quartiles(probes[PRODUCT], times[PRODUCT])[1] if PRODUCT in probes else None,
        share=None if "copy" in calls else share,
    )


def progress_line(result: Result, left: str) -> str:
    """Console line of a finished point: time, share of the limit, and times of the others."""
    ratios = ", ".join(f"{n} {q[1]:.2f}x" for n, q in result.ratio.items() if n != result.limit)
    time = formatting.seconds_text(result.seconds[result.subject])
    share = f"{result.percent_of_limit:.0f}% of {LIMIT_NAMES[result.limit]}"
    return f"[{result.isa} {left}] {result.point.label}: {time}, {share}; {ratios}"


def check_kernels(isa: str) -> None:
    """Exits unless the kernels of `isa` are active. For AMX this also asks for the tiles."""
    kernels = flash_attention.build_info().active
    if kernels != isa:
        sys.exit(f"bench/attention/speed.py: expected active kernels {isa}, got {kernels}")


def describe_run(isa: str, rounds: int, rates: dict[str, Quartiles]) -> dict[str, Any]:
    """Machine, commit and settings, for the record."""
    where = host.machine()
    return {
        "where": host.describe(where, isa),
        "machine": where,
        "usable_cores": len(host.CORES),
        "rounds": rounds,
        "rates": {name: rounded(median) for name, (_, median, _) in rates.items()},
        "rate_quartiles": {n: [rounded(low), rounded(high)] for n, (low, _, high) in rates.items()},
    }


def chosen(args: argparse.Namespace, isa: str) -> list[Point]:
    """The points that the options select, without those that need more cores than there are."""
    if args.length is not None:
        return points.own_shape(args.length, args.head_dim, args.heads, args.batch, args.dtype)
    plan = points.quick_plan(isa) if args.quick else points.plan(isa, args.full)
    if args.group:
        plan = [p for p in plan if p.tag.startswith(args.group)]
    return [p for p in plan if p.threads <= len(host.CORES)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that select points and how to measure them; shared with bench/run.py."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a few small points, 3 rounds: seconds")
    which.add_argument("--full", action="store_true", help="also float64 at every length")
    which.add_argument("--length", type=int, help="one shape of your own, of this length")
    parser.add_argument(
        "--group", default="", help='only points of a group, like "decode" or "grid bfloat16"'
    )
    parser.add_argument("--head-dim", type=int, default=64, help="with --length")
    parser.add_argument("--heads", type=int, default=8, help="with --length")
    parser.add_argument("--batch", type=int, default=1, help="with --length")
    parser.add_argument("--dtype", choices=list(points.SIZES), default="float32")
    parser.add_argument("--rounds", type=int, help="samples of each candidate; 15")
    parser.add_argument("--build", type=Path, default=host.ROOT / "build")


def rounds_of(args: argparse.Namespace) -> int:
    """As given, or the default."""
    return args.rounds or (3 if args.quick else 15)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--isa", choices=host.ISAS, required=True)
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--later", type=float, default=0.0, help="expected seconds of later processes"
    )
    args = parser.parse_args()
    rounds = rounds_of(args)
    host.pin(1)
    check_kernels(args.isa)
    plan = chosen(args, args.isa)
    machine = Machine(args.build, args.isa, plan)
    run = describe_run(args.isa, rounds, machine.rates(rounds))
    print(run["where"])
    print(run_tables.rates_text(run), flush=True)
    seconds = [expected_time.expected_seconds([point], rounds) for point in plan]
    left = progress.Progress(seconds, args.later)
    record = Record({args.isa: run}, [])
    record.write(args.json)
    for point in plan:
        record.results.append(measure_point(point, args.isa, machine, rounds))
        print(progress_line(record.results[-1], left.advance()), flush=True)
        record.write(args.json)  # kept even if a later point fails
    return 0


if __name__ == "__main__":
    sys.exit(main())
