"""A training step of our models beside neuralforecast's; `make bench` calls this.

    python=.venv-neuralforecast/bin/python
    $python bench/models.py                             # every model and length; 25 minutes
    $python bench/models.py --only TFT --lengths 96     # a quick look
    $python bench/models.py --quick                     # each model on a tiny shape: seconds

Forward, mean absolute error, backward and Adam on float32 windows, batch 32, horizon 96, default
sizes, no exogenous columns. Both sides start from the same weights, are checked to give the same
output, and take turns in one process on one thread, each with every instruction that this CPU has.
Both round denormal numbers to zero (`torch.set_flush_denormal`), without which the original of TFT
is at times several times slower. Peak memory is measured in a process for each side. Ours has
`use_flash_attention` on where that changes no number, and off in Autoformer and FEDformer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import flash_attention
import measure
import model_memory
import model_pair
import model_shapes
import model_targets
import progress
import torch
from model_results import ModelResult
from model_shapes import Shape
from results import MODELS, Record


def measure_shape(shape: Shape, rounds: int, memory: bool) -> ModelResult:
    """Turns in this process, then the peaks of memory in two others."""
    pair, difference = model_pair.checked_pair(shape)
    inputs = model_pair.windows(shape)
    steps = {side: model_pair.Step(model, *inputs) for side, model in pair.items()}
    times = measure.interleaved(steps, rounds)
    del pair, steps, inputs
    model_memory.forget_the_past()
    return ModelResult(
        shape=shape,
        rounds=len(times["ours"]),
        seconds={side: statistics.median(samples) for side, samples in times.items()},
        ratio=measure.quartiles_of_ratio(times["neuralforecast"], times["ours"]),
        difference=difference,
        bytes=model_memory.measure(Path(__file__), shape) if memory else {},
    )


def progress_line(result: ModelResult, left: str) -> str:
    """One finished shape."""
    own, theirs = (
        measure.seconds_text(result.seconds[side]) for side in ("ours", "neuralforecast")
    )
    memory = ""
    if result.bytes:
        sizes = [measure.bytes_text(result.bytes[side]) for side in ("ours", "neuralforecast")]
        memory = f"; memory {sizes[0]}, neuralforecast {sizes[1]}, {result.memory_share:.2f}x"
    times = f"{own}, neuralforecast {theirs}, {result.times_as_fast:.2f}x as fast"
    return f"[models {left}] {result.shape.label}: {times}{memory}"


def describe_run(rounds: int) -> dict[str, Any]:
    """Where and how, for the record."""
    where = measure.machine()
    kernels = flash_attention.build_info().active
    text = f"{measure.describe(where)}; kernels of this project: {kernels}"
    return {
        "where": f"{text}; neuralforecast {model_pair.VERSION}; denormals flushed to zero",
        "machine": where,
        "neuralforecast": model_pair.VERSION,
        "rounds": rounds,
    }


def chosen(args: argparse.Namespace) -> list[Shape]:
    """The shapes that the options ask for."""
    if args.quick:
        return [shape for shape in model_shapes.quick_plan() if shape.model in args.only]
    return model_shapes.plan(tuple(args.only), tuple(args.lengths), tuple(args.series))


def rounds_of(args: argparse.Namespace) -> int:
    """As asked for, or by default."""
    return args.rounds or (3 if args.quick else 15)


def expected_seconds(plan: list[Shape], rounds: int, memory: bool = True) -> float:
    """A guess for all of them."""
    return sum(shape.expected_seconds(rounds, memory) for shape in plan)


def run(args: argparse.Namespace) -> Record:
    """One shape after the other; what is measured is kept, whatever happens next."""
    rounds, plan, memory = rounds_of(args), chosen(args), not args.no_memory
    record = Record({MODELS: describe_run(rounds)}, [])
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
    names, shapes = model_shapes.MODELS, model_shapes
    found.add_argument("--only", nargs="+", choices=names, default=names, metavar="MODEL")
    found.add_argument("--lengths", nargs="+", type=int, default=shapes.LENGTHS, metavar="L")
    found.add_argument("--series", nargs="+", type=int, default=shapes.SERIES, metavar="N")
    found.add_argument("--quick", action="store_true", help="a tiny shape of each model")
    found.add_argument("--rounds", type=int, help="steps of each side; 15")
    found.add_argument("--no-memory", action="store_true", help="time only")
    found.add_argument("--json", type=Path, help="where the results go")
    found.add_argument("--no-table", action="store_true", help="progress only")
    found.add_argument("--memory-of", choices=model_memory.SIDES, help=argparse.SUPPRESS)
    found.add_argument("--shape", help=argparse.SUPPRESS)
    return found


def main() -> int:
    args = parser().parse_args()
    measure.pin(1)
    torch.set_flush_denormal(True)
    if args.memory_of is not None:
        model_memory.measure_here(args.memory_of, Shape(**json.loads(args.shape)))
        return 0
    model_pair.neuralforecast()  # what is missing is said at once
    record = run(args)
    if not args.no_table:
        print(f"\n{model_targets.table(record.models)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
