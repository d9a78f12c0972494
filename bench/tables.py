"""Measures the tables of the documentation, prints them, and updates them in place.

    python bench/tables.py                                  # print all of them; some minutes
    python bench/tables.py --only memory accuracy           # some of them
    python bench/tables.py --write docs/*.md                # renew them in these files

A table stands between the comments `<!-- table: NAME -->` and `<!-- end of table -->`. Measured on
one core with one thread, all libraries restricted to AVX2. The tables of speed are not measured
here: they come from what `bench/run.py --record` recorded of this CPU, or from --record FILE, and
stand after `<!-- table: NAME of RECORD -->`, where RECORD is the name of that file.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flash_attention
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import run
from bench.attention import comparison, targets, workload
from bench.common import formatting, host, timing
from bench.report import limit_tables, model_report, provenance, records, run_tables, verdict
from bench.report.records import MODELS, Record

# The design goal of docs/benchmarks.md at each of these lengths, its `guide` column.
GUIDE_SAVINGS = {128: 16, 512: 64, 1024: 128, 2048: 256, 4096: 512}
BLOCK_SIZES = (32, 64, 128, 256)


def memory_rows(batch: int, backward: bool) -> tuple[list[str], list[list[str]]]:
    """Measured peaks of both methods at the guide's lengths: header and rows."""
    header = ["L", "scores alone", "standard", "flash", "standard / flash", "scores / flash"]
    rows = []
    for length in workload.GUIDE_LENGTHS:
        cost = comparison.memory_cost(length, backward, batch)
        scores = comparison.score_bytes(length, batch)
        rows.append(
            [
                str(length),
                formatting.bytes_text(scores),
                formatting.bytes_text(cost.standard),
                formatting.bytes_text(cost.flash),
                f"{cost.ratio:.0f}x",
                f"{scores / cost.flash:.0f}x",
            ]
        )
    return header, rows


def memory() -> str:
    """Forward, one sequence, with `memory_usage` and the guide's ratio."""
    header, rows = memory_rows(batch=1, backward=False)
    for row, length in zip(rows, workload.GUIDE_LENGTHS, strict=True):
        row.insert(4, formatting.bytes_text(comparison.predicted_bytes(length)))
        row.append(f"{GUIDE_SAVINGS[length]}x")
    header.insert(4, "memory_usage")
    return formatting.table([*header, "guide"], rows, left=0)


def memory_batch() -> str:
    """Forward, eight sequences."""
    return formatting.table(*memory_rows(batch=8, backward=False), left=0)


def memory_training() -> str:
    """Forward + backward, one sequence."""
    return formatting.table(*memory_rows(batch=1, backward=True), left=0)


def accuracy() -> str:
    """Differences between methods and dtypes at the guide's lengths."""
    header = ["L", "f64 output", "f64 gradients", "f32 output", "f32 flash to f64"]
    header.append("f32 standard to f64")
    rows = []
    for length in workload.GUIDE_LENGTHS:
        found = comparison.difference(length)
        values = (
            found.float64,
            found.float64_gradients,
            found.float32,
            found.flash_to_truth,
            found.standard_to_truth,
        )
        rows.append([str(length), *(f"{value:.1e}" for value in values)])
    return formatting.table(header, rows, left=0)


def block_size_row(length: int) -> list[str]:
    """Time and scratch memory at one length, and which block size is the fastest."""
    width = comparison.HEAD_DIM
    inputs = workload.qkv((1, length, width), torch.float64)
    root = math.ceil(math.sqrt(length))
    calls: dict[str, Callable[[], object]] = {
        str(size): lambda size=size: flash_attention.attention(*inputs, block_size=size)
        for size in dict.fromkeys((*BLOCK_SIZES, root))
    }
    times = timing.interleaved(calls, rounds=21, budget=8.0)
    medians = {name: statistics.median(samples) for name, samples in times.items()}

    def cell(size: int) -> str:
        config = flash_attention.FlashAttentionConfig(block_size=size)
        usage = flash_attention.FlashAttention(config).memory_usage(length, width, width, 1)
        return f"{formatting.seconds_text(medians[str(size)])}, {formatting.bytes_text(usage)}"

    best = min(medians, key=medians.__getitem__)
    return [str(length), *(cell(size) for size in BLOCK_SIZES), f"{root}: {cell(root)}", best]


def block_size() -> str:
    """Forward time and scratch memory for each block size and for ceil(sqrt(L))."""
    header = ["L", *(f"block {size}" for size in BLOCK_SIZES), "sqrt(L)", "fastest"]
    return formatting.table(
        header, [block_size_row(length) for length in workload.GUIDE_LENGTHS], left=0
    )


def simd() -> str:
    """Forward with and without vector instructions, 8 heads, L 1024, D 64."""
    rows = []
    for dtype in (torch.float32, torch.float64):
        inputs = workload.qkv((1, 8, 1024, 64), dtype)
        calls: dict[str, Callable[[], object]] = {
            str(on): lambda on=on, inputs=inputs: flash_attention.attention(*inputs, use_simd=on)
            for on in (True, False)
        }
        times = timing.interleaved(calls, rounds=9, budget=20.0)
        on, off = statistics.median(times["True"]), statistics.median(times["False"])
        name = str(dtype).removeprefix("torch.")
        cells = [formatting.seconds_text(on), formatting.seconds_text(off)]
        rows.append([name, *cells, f"{timing.median_ratio(times['False'], times['True']):.1f}x"])
    return formatting.table(["dtype", "use_simd=True", "use_simd=False", "faster"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "memory": memory,
    "memory-batch": memory_batch,
    "memory-training": memory_training,
    "accuracy": accuracy,
    "block-size": block_size,
    "simd": simd,
}


# A table, and the runs that measured its figures; no runs if the record has none.
Recorded = tuple[str, provenance.Runs]


def recorded_targets(record: Record) -> Recorded:
    """Every target, and whether it is met."""
    judged = [result for result in record.results if result.point.group != "block size"]
    return verdict.side_by_side(targets.lines(record)), record.runs_of(judged)


def recorded_speed(record: Record, isa: str) -> Recorded:
    """The lengths at D 64."""
    results = run_tables.speed_results(record, isa)
    return run_tables.speed_table(record, isa), record.runs_of(results)


def recorded_models(record: Record) -> Recorded:
    """Training steps against neuralforecast's, and against their floor."""
    text = model_report.training(record)
    return text, {MODELS: record.runs[MODELS]} if text else {}


def recorded_inference(record: Record) -> Recorded:
    """Forecasts against neuralforecast's."""
    text = model_report.inference(record)
    return text, {MODELS: record.runs[MODELS]} if text else {}


def recorded_peak(record: Record) -> Recorded:
    """Shares of the peak of a core."""
    return limit_tables.peak_table(record), record.runs_of(limit_tables.peak_results(record))


def recorded_decode(record: Record) -> Recorded:
    """Shares of the bandwidth of a copy."""
    return limit_tables.decode_table(record), record.runs_of(limit_tables.decode_results(record))


# Made from a record of `bench/run.py`.
RECORDED: dict[str, Callable[[Record], Recorded]] = {
    "targets": recorded_targets,
    "speed": lambda record: recorded_speed(record, "avx2"),
    "speed-native": lambda record: recorded_speed(record, "avx512"),
    "peak": recorded_peak,
    "decode": recorded_decode,
    "models": recorded_models,
    "inference": recorded_inference,
}


def replace(text: str, name: str, body: str) -> str:
    """`text` with the table of this name replaced, if it has one."""
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.S)
    return pattern.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text)


def show(name: str, body: str, files: list[Path]) -> None:
    """Prints a table and updates it in the files."""
    print(f"## {name}\n\n{body}\n", flush=True)
    for path in files:
        path.write_text(replace(path.read_text(), name, body))


def measure_here(args: argparse.Namespace) -> None:
    """Runs in the child process: pins, measures, prints and writes."""
    host.pin(1)
    where = f"Measured: {host.describe(host.machine())}."
    for name in args.only:
        show(name, f"{TABLES[name]()}\n\n{where}", args.write)


def show_recorded(names: list[str], path: Path, files: list[Path]) -> None:
    """The tables that come from a record, with the runs that measured them."""
    if not path.is_file():
        sys.exit(
            f"bench/tables.py: expected {path} for {', '.join(names)}, found none; run "
            "bench/run.py --record, or name another record with --record"
        )
    record = records.read(path)
    for name in names:
        text, runs = RECORDED[name](record)
        if runs:
            where = "\n".join(provenance.of_runs(runs))
            show(f"{name} of {path.stem}", f"{text}\n\n{where}", files)
        else:
            print(f"## {name}: {path} has no figures for it\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*TABLES, *RECORDED]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument(
        "--record", type=Path, default=run.record_path(), help="record of bench/run.py"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure_here(args)
        return 0
    if measured := [name for name in args.only if name in TABLES]:
        command = [sys.executable, sys.argv[0], "--child", "--only", *measured]
        command += ["--write", *map(str, args.write)] if args.write else []
        subprocess.run(command, env=host.environment("avx2"), check=True)
    if recorded := [name for name in args.only if name in RECORDED]:
        show_recorded(recorded, args.record, args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
