"""Measures context parallelism on this machine: time, memory and error, beside the cost model.

    python bench/distributed/run.py                            # 8,192 positions: minutes
    python bench/distributed/run.py --length 8192 32768 131072 # two hours on two cores
    python bench/distributed/run.py --million                  # 1,000,000 positions: hours

Each process has one thread, pinned to a core. As many processes as cores are timed in turns with
one process that has all cores, and judged; more processes share the cores, which shows that they
are correct. The cost model gets the rates that the processes have side by side, and the bandwidth
of a message between them. Memory is the growth of the resident memory of a process over a call,
inputs and gradients included. The error is that of the output and of the gradients at 16 positions,
against float64, relative to the largest element of each row.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flash_attention
from flash_attention.distributed.cost import Rates, predict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.common import formatting, host, timing
from bench.distributed import result, worker
from bench.distributed.points import MILLION, PROCESSES, WINDOW, Point
from bench.distributed.pool import Pool
from bench.distributed.result import Result

MASKS = {"full": False, "causal": True}
# Of one call, so that nobody starts one of days by accident.
MOST_SECONDS = 3600.0
SMALLEST_ROW = 1e-3


def quartiles(samples: Sequence[float]) -> result.Quartiles:
    """Of one sample, that sample."""
    if len(samples) == 1:
        return (samples[0],) * 3
    low, median, high = statistics.quantiles(samples, n=4)
    return low, median, high


def slowest(found: Sequence[worker.Times]) -> worker.Times:
    """Of the process that took longest."""
    return max(found, key=lambda times: times.total)


def relative(found: Sequence[dict[str, list[worker.Error]]]) -> dict[str, float]:
    """The largest difference of a row over its largest element; NaN if there is one.

    Elements of some rows are nothing but rounding, like the gradient of a query with a single key:
    a row counts as no smaller than SMALLEST_ROW of the largest.
    """
    errors = {}
    for name in worker.TENSORS:
        rows = [row for of_process in found for row in of_process[name]]
        least = SMALLEST_ROW * max(row.size for row in rows) or 1.0
        ratios = [row.difference / max(row.size, least) for row in rows]
        errors[name] = max(ratios, key=lambda x: (math.isnan(x), x))
    return errors


class Measurement:
    """Pools of processes, and the rates of this machine with each."""

    def __init__(self, head_dim: int) -> None:
        self.cores = len(host.CORES)
        self.head_dim = head_dim
        self._rates: dict[int, Rates] = {}

    def rates(self, pool: Pool, threads: int = 1) -> Rates:
        """Of the processes of a pool, all at the same time."""
        if pool.size not in self._rates:
            measured = pool.run(worker.rates, self.head_dim, threads)
            links = pool.run(worker.link) if pool.size > 1 else []
            self._rates[pool.size] = Rates(
                forward=statistics.median(m.forward for m in measured),
                backward=statistics.median(m.backward for m in measured),
                bandwidth=min((x.bandwidth for x in links), default=1.0),
                latency=max((x.latency for x in links), default=0.0),
                call=statistics.median(m.call for m in measured),
            )
            self._show(pool.size, threads, self._rates[pool.size])
        return self._rates[pool.size]

    def _show(self, size: int, threads: int, rates: Rates) -> None:
        text = f"{size} x {threads} threads: forward {rates.forward / 1e9:.1f} GFLOP/s each, "
        text += f"backward {rates.backward / 1e9:.1f} GFLOP/s each"
        if size > 1:
            text += f", messages {rates.bandwidth / 1e9:.2f} GB/s, "
            text += formatting.seconds_text(rates.latency)
        print(text, flush=True)

    def predicted(self, point: Point, rates: Rates) -> tuple[float, float]:
        found = predict(point.method, point.workload, rates)
        return found.seconds, found.memory

    def compared(self, point: Point, rounds: int) -> Result:
        """A point in turns with one process that has all cores."""
        one = replace(point, processes=1)
        with Pool(point.processes) as many, Pool(1, self.cores) as single:
            rates, rates_alone = self.rates(many), self.rates(single, self.cores)
            memory_alone, _ = single.run(worker.prepare, one, rank=True)[0]
            memory = max(most for most, _ in many.run(worker.prepare, point, rank=True))
            times: list[worker.Times] = []
            alone: list[float] = []
            for _ in range(rounds):
                alone.append(single.run(worker.step)[0].total)
                times.append(slowest(many.run(worker.step)))
            error = relative(many.run(worker.errors, rank=True))
        totals = [t.total for t in times]
        return Result(
            point=point,
            cores=self.cores,
            seconds=(
                statistics.median(t.forward for t in times),
                statistics.median(t.backward for t in times),
            ),
            spread=quartiles(totals),
            memory=memory,
            error=error,
            predicted=self.predicted(point, rates),
            alone=(statistics.median(alone), memory_alone, self.predicted(one, rates_alone)[0]),
            ratio=timing.quartiles_of_ratio(totals, alone) if rounds > 1 else None,
        )

    def once(self, point: Point, most_seconds: float) -> Result | None:
        """A point in a single call; None if the model predicts more than `most_seconds`."""
        with Pool(point.processes) as pool:
            predicted = self.predicted(point, self.rates(pool))
            print(f"{point.label}: predicted {formatting.seconds_text(predicted[0])}", flush=True)
            if predicted[0] > most_seconds:
                print(f"not measured: expected at most {most_seconds:.0f} s, see --most-seconds")
                return None
            found = pool.run(worker.once, point, rank=True)
        times = slowest([t for _, t, _ in found])
        return Result(
            point=point,
            cores=self.cores,
            seconds=tuple(times),
            spread=quartiles([times.total]),
            memory=max(most for most, _, _ in found),
            error=relative([e for _, _, e in found]),
            predicted=predicted,
        )


def measured(args: argparse.Namespace) -> Iterator[Result]:
    """Every point that the options ask for."""
    measurement = Measurement(args.head_dim)
    if args.million:
        for point in (
            Point(MILLION, 4, window=WINDOW, head_dim=args.head_dim),
            Point(MILLION, 4, causal=True, heads=1, head_dim=args.head_dim),
        ):
            found = measurement.once(point, args.most_seconds)
            if found is not None:
                yield found
        return
    for length in args.length:
        for processes in args.processes:
            for mask in args.mask:
                point = Point(
                    length,
                    processes,
                    MASKS[mask],
                    heads=args.heads,
                    head_dim=args.head_dim,
                    method=args.method,
                )
                # One round where there is nothing to judge.
                rounds = args.rounds if processes <= measurement.cores else 1
                yield measurement.compared(point, rounds)


def at_least(least: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, got {text!r}"
            )
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--length", type=at_least(1), nargs="+", default=[8192], help="8192")
    found.add_argument("--processes", type=at_least(2), nargs="+", default=[*PROCESSES])
    found.add_argument("--mask", choices=list(MASKS), nargs="+", default=[*MASKS])
    found.add_argument("--method", choices=("ring", "all_gather"), default="ring")
    found.add_argument("--heads", type=at_least(1), default=2)
    found.add_argument("--head-dim", type=at_least(1), default=64)
    found.add_argument("--rounds", type=at_least(1), default=5, help="pairs of calls; 5")
    found.add_argument("--million", action="store_true", help="only a million positions")
    found.add_argument(
        "--most-seconds",
        type=at_least(1),
        default=MOST_SECONDS,
        help="leaves out a call of a million positions that is predicted to take longer; 3600",
    )
    found.add_argument(
        "--json", type=Path, default=host.ROOT / "out" / "bench" / "distributed.json"
    )
    found.add_argument("--strict", action="store_true", help="exit with 1 on a shortfall")
    return found


def main() -> int:
    args = parser().parse_args()
    where = host.describe(host.machine(), flash_attention.build_info().active)
    print(where, flush=True)
    results: list[Result] = []
    for found in measured(args):
        results.append(found)
        print(found.line(), flush=True)
        rows = {"where": where, "results": [r.row() for r in results]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if not results:
        return 0
    print(f"\nTime of a call, forward and backward:\n\n{result.times(results)}")
    print(f"\nMemory of a process, and errors:\n\n{result.memory_and_errors(results)}")
    print(f"\nWritten: {args.json}")
    return int(args.strict and any(r.verdict == "SHORTFALL" for r in results))


if __name__ == "__main__":
    sys.exit(main())
