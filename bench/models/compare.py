"""Training steps of our models against neuralforecast's; `bench/run.py` runs this.

    python=.venv-neuralforecast/bin/python
    $python bench/models/compare.py                          # every model and length; 25 minutes
    $python bench/models/compare.py --only TFT --lengths 96  # one model, one length
    $python bench/models/compare.py --quick                  # tiny shapes: seconds

A step is forward, mean absolute error, backward and Adam on float32 windows: batch 32, horizon 96,
default sizes, no exogenous columns. Both sides start from the same weights, must give the same
output, and are timed in turns in one process with one thread, each at the best instruction set of
this CPU. Both flush denormals to zero (`torch.set_flush_denormal`), without which the original TFT
is sometimes several times slower. Peak memory is measured in one process per side. Our side sets
`use_flash_attention` where that leaves the results unchanged, so not in Autoformer and FEDformer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.common import formatting, host, progress, timing
from bench.models import shapes, step_memory, targets, training_pair
from bench.models.result import ModelResult
from bench.models.shapes import Shape
from bench.report.records import MODELS, Record


def measure_shape(shape: Shape, rounds: int, memory: bool) -> ModelResult:
    """Times both sides in turns in this process, then measures peak memory in two others."""
    pair, difference = training_pair.checked_pair(shape)
    inputs = training_pair.windows(shape)
    steps = {side: training_pair.Step(model, *inputs) for side, model in pair.items()}
    times = timing.interleaved(steps, rounds)
    del pair, steps, inputs
    step_memory.forget_the_past()
    return ModelResult(
        shape=shape,
        rounds=len(times["ours"]),
        seconds={side: statistics.median(samples) for side, samples in times.items()},
        ratio=timing.quartiles_of_ratio(times["neuralforecast"], times["ours"]),
        difference=difference,
        bytes=step_memory.measure(Path(__file__), shape) if memory else {},
    )


def progress_line(result: ModelResult, left: str) -> str:
    """Console line of a finished shape."""
    own, theirs = (
        formatting.seconds_text(result.seconds[side]) for side in ("ours", "neuralforecast")
    )
    memory = ""
    if result.bytes:
        sizes = [formatting.bytes_text(result.bytes[side]) for side in ("ours", "neuralforecast")]
        memory = f"; memory {sizes[0]}, neuralforecast {sizes[1]}, {result.memory_share:.2f}x"
    times = f"{own}, neuralforecast {theirs}, {result.times_as_fast:.2f}x as fast"
    return f"[models {left}] {result.shape.label}: {times}{memory}"


def chosen(args: argparse.Namespace) -> list[Shape]:
    """The shapes that the options select."""
    if args.quick:
        return [shape for shape in shapes.quick_plan() if shape.model in args.only]
    return shapes.plan(tuple(args.only), tuple(args.lengths), tuple(args.series))


def rounds_of(args: argparse.Namespace) -> int:
    """As given, or the default."""
    return args.rounds or (3 if args.quick else 15)


def expected_seconds(plan: list[Shape], rounds: int, memory: bool = True) -> float:
    """The estimate for all shapes together."""
    return sum(shape.expected_seconds(rounds, memory) for shape in plan)


def run(args: argparse.Namespace) -> Record:
    """Measures shape by shape and writes the record after each, in case a later one fails."""
    rounds, plan, memory = rounds_of(args), chosen(args), not args.no_memory
    record = Record({MODELS: training_pair.describe_run() | {"rounds": rounds}}, [])
    print(record.runs[MODELS]["where"])
    left = progress.Progress([shape.expected_seconds(rounds, memory) for shape in plan])
    for shape in plan:
        record.models.append(measure_shape(shape, rounds, memory))
        print(progress_line(record.models[-1], left.advance()), flush=True)
        if args.json is not None:
            record.write(args.json)
    return record


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = shapes.MODELS
    found.add_argument("--only", nargs="+", choices=names, default=names, metavar="MODEL")
    found.add_argument("--lengths", nargs="+", type=int, default=shapes.LENGTHS, metavar="L")
    found.add_argument("--series", nargs="+", type=int, default=shapes.SERIES, metavar="N")
    found.add_argument("--quick", action="store_true", help="a tiny shape of each model")
    found.add_argument("--rounds", type=int, help="steps of each side; 15")
    found.add_argument("--no-memory", action="store_true", help="time only")
    found.add_argument("--json", type=Path, help="where the results go")
    found.add_argument("--no-table", action="store_true", help="progress only")
    found.add_argument("--memory-of", choices=step_memory.SIDES, help=argparse.SUPPRESS)
    found.add_argument("--shape", help=argparse.SUPPRESS)
    return found


def main() -> int:
    args = parser().parse_args()
    host.pin(1)
    torch.set_flush_denormal(True)
    if args.memory_of is not None:
        step_memory.measure_here(args.memory_of, Shape(**json.loads(args.shape)))
        return 0
    training_pair.neuralforecast()  # fails at once if it is missing
    record = run(args)
    if not args.no_table:
        print(f"\n{targets.table(record.models)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
