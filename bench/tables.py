"""Measures the tables of the documentation, prints them, and puts them where they stand.

    python bench/tables.py                                  # print all of them; some minutes
    python bench/tables.py --only memory accuracy           # some of them
    python bench/tables.py --write docs/*.md                # renew them in these files

A file holds a table between the comments `<!-- table: NAME -->` and `<!-- end of table -->`. One
thread on one core, everybody held to AVX2. The tables of speed are not measured here but taken from
what `bench/run.py --record` kept of this CPU, or from another record named by --record.
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

import comparison
import flash_attention
import measure
import model_targets
import report
import results
import run
import targets
import torch
from results import MODELS, Record

# What the guide's table promises at each of its lengths.
GUIDE_SAVINGS = {128: 16, 512: 64, 1024: 128, 2048: 256, 4096: 512}
BLOCK_SIZES = (32, 64, 128, 256)


def memory_rows(batch: int, backward: bool) -> tuple[list[str], list[list[str]]]:
    """Measured peaks of both methods at the guide's lengths."""
    header = ["L", "scores alone", "standard", "flash", "standard / flash", "scores / flash"]
    rows = []
    for length in measure.GUIDE_LENGTHS:
        cost = comparison.memory_cost(length, backward, batch)
        scores = comparison.score_bytes(length, batch)
        rows.append(
            [
                str(length),
                measure.bytes_text(scores),
                measure.bytes_text(cost.standard),
                measure.bytes_text(cost.flash),
                f"{cost.ratio:.0f}x",
                f"{scores / cost.flash:.0f}x",
            ]
        )
    return header, rows


def memory() -> str:
    """Forward, one sequence: beside `memory_usage` and the guide's ratio."""
    header, rows = memory_rows(batch=1, backward=False)
    for row, length in zip(rows, measure.GUIDE_LENGTHS, strict=True):
        row.insert(4, measure.bytes_text(comparison.predicted_bytes(length)))
        row.append(f"{GUIDE_SAVINGS[length]}x")
    header.insert(4, "memory_usage")
    return measure.table([*header, "guide"], rows, left=0)


def memory_batch() -> str:
    """Forward, eight sequences."""
    return measure.table(*memory_rows(batch=8, backward=False), left=0)


def memory_training() -> str:
    """Forward + backward, one sequence."""
    return measure.table(*memory_rows(batch=1, backward=True), left=0)


def accuracy() -> str:
    """Differences at the guide's lengths."""
    header = ["L", "f64 output", "f64 gradients", "f32 output", "f32 flash to f64"]
    header.append("f32 standard to f64")
    rows = []
    for length in measure.GUIDE_LENGTHS:
        found = comparison.difference(length)
        values = (
            found.float64,
            found.float64_gradients,
            found.float32,
            found.flash_to_truth,
            found.standard_to_truth,
        )
        rows.append([str(length), *(f"{value:.1e}" for value in values)])
    return measure.table(header, rows, left=0)


def block_size_row(length: int) -> list[str]:
    """Time and scratch at one length, and which block is the fastest."""
    width = comparison.HEAD_DIM
    inputs = measure.qkv((1, length, width), torch.float64)
    root = math.ceil(math.sqrt(length))
    calls: dict[str, Callable[[], object]] = {
        str(size): lambda size=size: flash_attention.attention(*inputs, block_size=size)
        for size in dict.fromkeys((*BLOCK_SIZES, root))
    }
    times = measure.interleaved(calls, rounds=21, budget=8.0)
    medians = {name: statistics.median(samples) for name, samples in times.items()}

    def cell(size: int) -> str:
        config = flash_attention.FlashAttentionConfig(block_size=size)
        usage = flash_attention.FlashAttention(config).memory_usage(length, width, width, 1)
        return f"{measure.seconds_text(medians[str(size)])}, {measure.bytes_text(usage)}"

    best = min(medians, key=medians.__getitem__)
    return [str(length), *(cell(size) for size in BLOCK_SIZES), f"{root}: {cell(root)}", best]


def block_size() -> str:
    """Forward time and scratch for each block size, and for sqrt(L) rounded up."""
    header = ["L", *(f"block {size}" for size in BLOCK_SIZES), "sqrt(L)", "fastest"]
    return measure.table(
        header, [block_size_row(length) for length in measure.GUIDE_LENGTHS], left=0
    )


def simd() -> str:
    """Forward with and without vector instructions, 8 heads, L 1024, D 64."""
    rows = []
    for dtype in (torch.float32, torch.float64):
        inputs = measure.qkv((1, 8, 1024, 64), dtype)
        calls: dict[str, Callable[[], object]] = {
            str(on): lambda on=on, inputs=inputs: flash_attention.attention(*inputs, use_simd=on)
            for on in (True, False)
        }
        times = measure.interleaved(calls, rounds=9, budget=20.0)
        on, off = statistics.median(times["True"]), statistics.median(times["False"])
        name = str(dtype).removeprefix("torch.")
        cells = [measure.seconds_text(on), measure.seconds_text(off)]
        rows.append([name, *cells, f"{measure.median_ratio(times['False'], times['True']):.1f}x"])
    return measure.table(["dtype", "use_simd=True", "use_simd=False", "faster"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "memory": memory,
    "memory-batch": memory_batch,
    "memory-training": memory_training,
    "accuracy": accuracy,
    "block-size": block_size,
    "simd": simd,
}


def recorded_targets(record: Record) -> str:
    """Every mark, and whether it is reached."""
    return targets.side_by_side(targets.lines(record))


# Made from a record of `bench/run.py`: the function, and the runs that it shows.
RECORDED: dict[str, tuple[Callable[[Record], str], tuple[str, ...]]] = {
    "targets": (recorded_targets, run.ISAS),
    "speed": (lambda record: report.speed_table(record, "avx2"), ("avx2",)),
    "speed-native": (lambda record: report.speed_table(record, "avx512"), ("avx512",)),
    "models": (lambda record: model_targets.table(record.models), (MODELS,)),
}


def replace(text: str, name: str, body: str) -> str:
    """`text` with the table of this name renewed, if it has one."""
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.S)
    return pattern.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text)


def show(name: str, body: str, files: list[Path]) -> None:
    """Prints a table and renews it where it stands."""
    print(f"## {name}\n\n{body}\n", flush=True)
    for path in files:
        path.write_text(replace(path.read_text(), name, body))


def measure_here(args: argparse.Namespace) -> None:
    """In the child: pin, measure, print, write."""
    measure.pin(1)
    where = f"Measured: {measure.describe(measure.machine())}."
    for name in args.only:
        show(name, f"{TABLES[name]()}\n\n{where}", args.write)


def show_recorded(names: list[str], path: Path, files: list[Path]) -> None:
    """The tables that come from a record, with where that was measured."""
    if not path.is_file():
        sys.exit(
            f"bench/tables.py: expected {path} for {', '.join(names)}, found none; run "
            "bench/run.py --record, or name another record by --record"
        )
    record = results.read(path)
    for name in names:
        make, wanted = RECORDED[name]
        runs = [record.runs[run]["where"] for run in wanted if run in record.runs]
        if runs:
            where = "\n".join(f"Measured: {place}." for place in runs)
            show(name, f"{make(record)}\n\n{where}", files)
        else:
            print(f"## {name}: {path} has no numbers of {', '.join(wanted)}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*TABLES, *RECORDED]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--record", type=Path, default=run.record_path(), help="of bench/run.py")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure_here(args)
        return 0
    if measured := [name for name in args.only if name in TABLES]:
        command = [sys.executable, sys.argv[0], "--child", "--only", *measured]
        command += ["--write", *map(str, args.write)] if args.write else []
        subprocess.run(command, env=measure.environment("avx2"), check=True)
    if recorded := [name for name in args.only if name in RECORDED]:
        show_recorded(recorded, args.record, args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
