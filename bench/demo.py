"""The demonstration, `make demo`: what flash attention saves, and six forecasters trained with it.

1. accuracy, time and memory of flash against standard attention at lengths 128 to 4096;
2. the six models, trained on Seattle's weather by the C++ program flash_train, with and without
   flash, from one seed: test errors against naive forecasts, time and memory;
3. their training step in Python, with plain and with fused Adam;
4. pictures of the first two.

It takes five minutes. With another CSV file, the last rows are used:

    python bench/demo.py --data ETTh1.csv --columns OT,HUFL \\
        --input-size 336 --horizon 24 --season 24
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import flash_attention
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.attention import comparison, workload
from bench.common import formatting, host
from bench.forecasting import demo_optimizer, demo_report, demo_training
from bench.forecasting.demo_training import Task
from bench.report import plot


def heading(number: int, text: str) -> None:
    """A numbered section on the console."""
    print(f"\n{number}. {text}\n{'=' * (len(text) + 3)}\n", flush=True)


@dataclass(frozen=True)
class LengthRow:
    """The measurements of the first section at one length."""

    difference: comparison.Difference
    forward: comparison.Cost
    training: comparison.Cost
    memory: comparison.Cost
    training_memory: comparison.Cost
    predicted: int


def measure_lengths() -> list[LengthRow]:
    """One row per length of the guide; prints progress."""
    rows = []
    for length in workload.GUIDE_LENGTHS:
        print(f"  L = {length} ...", end="", flush=True)
        start = time.perf_counter()
        rows.append(
            LengthRow(
                comparison.difference(length),
                comparison.time_cost(length, backward=False),
                comparison.time_cost(length, backward=True),
                comparison.memory_cost(length, backward=False),
                comparison.memory_cost(length, backward=True),
                comparison.predicted_bytes(length),
            )
        )
        print(f" {time.perf_counter() - start:.1f} s", flush=True)
    return rows


def print_lengths(rows: list[LengthRow]) -> None:
    """Three small tables, which fit a console of 100 columns."""
    lengths = [str(row.difference.length) for row in rows]
    print("\nLargest difference of the output, flash to standard attention:\n")
    cells = [
        [length, f"{row.difference.float64:.1e}", f"{row.difference.float32:.1e}"]
        for length, row in zip(lengths, rows, strict=True)
    ]
    print(formatting.table(["L", "float64", "float32"], cells))

    print("\nTime of one call, float64:\n")
    header = ["L", "forward: standard", "flash", "faster"]
    header += ["with backward: standard", "flash", "faster"]
    cells = [
        [
            length,
            formatting.seconds_text(row.forward.standard),
            formatting.seconds_text(row.forward.flash),
            f"{row.forward.ratio:.2f}x",
            formatting.seconds_text(row.training.standard),
            formatting.seconds_text(row.training.flash),
            f"{row.training.ratio:.2f}x",
        ]
        for length, row in zip(lengths, rows, strict=True)
    ]
    print(formatting.table(header, cells))

    print("\nPeak memory beyond inputs and outputs, float64, measured:\n")
    header = ["L", "forward: standard", "flash", "memory_usage", "less"]
    header += ["with backward: standard", "flash", "less"]
    cells = [
        [
            length,
            formatting.bytes_text(row.memory.standard),
            formatting.bytes_text(row.memory.flash),
            formatting.bytes_text(row.predicted),
            f"{row.memory.ratio:.0f}x",
            formatting.bytes_text(row.training_memory.standard),
            formatting.bytes_text(row.training_memory.flash),
            f"{row.training_memory.ratio:.0f}x",
        ]
        for length, row in zip(lengths, rows, strict=True)
    ]
    print(formatting.table(header, cells))


def draw_lengths(rows: list[LengthRow], output: Path) -> Path:
    """Time and memory against length, on logarithmic axes."""
    lengths = [row.difference.length for row in rows]
    figure, axes = plot.grid(
        1,
        2,
        "Attention of one sequence [1, L, 64], float64, forward + backward",
        host.describe(host.machine()),
    )
    panels = (
        (axes[0][0], [row.training for row in rows], 1e3, "time of one call (ms)"),
        (axes[0][1], [row.training_memory for row in rows], 2.0**-20, "peak memory (MiB)"),
    )
    for panel, costs, factor, label in panels:
        for method in ("standard", "flash"):
            values = [getattr(cost, method) * factor for cost in costs]
            panel.plot(lengths, values, **plot.STYLES[method])
        panel.set_yscale("log")
        panel.set_ylabel(label)
        plot.length_axis(panel, lengths)
        panel.legend()
    axes[0][0].set_title("time")
    axes[0][1].set_title("memory beyond inputs and outputs")
    return plot.save(figure, output / "time_and_memory.png")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=host.ROOT / "build")
    parser.add_argument("--output", type=Path, default=host.ROOT / "out" / "demo")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="default 1, which other load on the machine disturbs least",
    )
    task = Task()
    parser.add_argument(
        "--only", nargs="+", choices=demo_training.MODELS, default=[*demo_training.MODELS]
    )
    parser.add_argument("--data", type=Path, default=task.data, help="a CSV file")
    parser.add_argument("--columns", default=",".join(task.columns), help="the columns to forecast")
    parser.add_argument("--input-size", type=int, default=task.input_size, help="rows of history")
    parser.add_argument("--horizon", type=int, default=task.horizon, help="rows to forecast")
    parser.add_argument("--season", type=int, default=task.season, help="rows per season")
    parser.add_argument("--rows", type=int, default=task.rows, help="use the last ROWS rows")
    return parser


def task_of(args: argparse.Namespace) -> Task:
    """The task that the options describe."""
    columns = tuple(args.columns.split(","))
    return Task(args.data, columns, args.input_size, args.horizon, args.season, args.rows)


def main() -> int:
    args = parser().parse_args()
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(host.describe(host.machine()))
    print(f"kernels of this project: {flash_attention.build_info().active}")

    heading(1, "Flash against standard attention, one sequence [1, L, 64]")
    rows = measure_lengths()
    print_lengths(rows)

    heading(2, "Six forecasters, trained in C++ with and without flash attention")
    task = task_of(args)
    pairs = demo_training.train_all(args.build, args.output, task, args.threads, tuple(args.only))
    demo_report.print_pairs(pairs, task)

    heading(3, f"A training step in Python, {demo_optimizer.LENGTH} rows of input")
    demo_optimizer.show(tuple(args.only))

    heading(4, "Pictures")
    pictures = [
        draw_lengths(rows, args.output),
        demo_report.draw(pairs, task, args.output),
    ]
    print(f"Done in {time.perf_counter() - start:.0f} s. Look at:")
    for picture in pictures:
        print(f"  {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
