"""Training steps and forecasts of our models against neuralforecast's; `bench/run.py` runs this.

    python=.venv-neuralforecast/bin/python
    $python bench/models/compare.py                          # every model and length; 30 minutes
    $python bench/models/compare.py --only TFT --lengths 96  # one model, one length
    $python bench/models/compare.py --part inference         # forecasts alone
    $python bench/models/compare.py --quick                  # tiny shapes: a minute

A step is forward, mean absolute error, backward and Adam on float32 windows: batch 32, horizon 96,
default sizes, no exogenous columns. Both sides start from the same weights, must give the same
output, and are timed in turns in one process with one thread, each at the best instruction set of
this CPU. Both flush denormals to zero (`torch.set_flush_denormal`), without which the original TFT
is sometimes several times slower. Our step is also timed with fused Adam, which neuralforecast does
not use: beside the floor, the operations of the original's step (flops.py) at the peak of the core,
and on two threads. Peak memory is measured in one process per side. Our side sets
`use_flash_attention` where that leaves the results unchanged, so not in Autoformer and FEDformer.

A forecast is the forward pass in evaluation mode without autograd, on one thread; inference.py
compares it with neuralforecast's, and with neuralforecast's exported to ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.attention import peak
from bench.common import formatting, host, progress, resident
from bench.models import (
    inference,
    onnx_runtime,
    shapes,
    step_memory,
    step_time,
    training_pair,
)
from bench.models.result import InferenceResult, ModelResult
from bench.models.shapes import Shape
from bench.report import model_report
from bench.report.records import MODELS, Record

PARTS = ("training", "inference")


def measure_shape(shape: Shape, rounds: int, memory: bool, probe: peak.Probe) -> ModelResult:
    """Times both sides in turns in this process, then measures peak memory in two others."""
    pair, difference = training_pair.checked_pair(shape)
    steps = step_time.steps(shape, pair)
    times = step_time.in_turns(steps, probe, rounds)
    floor = times.floor(step_time.needed(steps["neuralforecast"]))
    # Hundreds of series would take minutes and show no more than few.
    threads = None if shape.many_series else step_time.two_threads(steps["fused"], rounds)
    del pair, steps
    resident.forget_the_past()
    return ModelResult(
        shape=shape,
        rounds=times.rounds,
        seconds=times.medians,
        ratio=times.ratio("neuralforecast", "ours"),
        difference=difference,
        bytes=step_memory.measure(Path(__file__), shape) if memory else {},
        fused=times.ratio("ours", "fused"),
        floor=floor,
        threads=threads,
    )


def progress_line(result: ModelResult, left: str) -> str:
    """Console line of a finished training step."""
    own, theirs = (
        formatting.seconds_text(result.seconds[side]) for side in ("ours", "neuralforecast")
    )
    parts = [f"{own}, neuralforecast {theirs}, {result.times_as_fast:.2f}x as fast"]
    if result.floor is not None:
        over = {name: quartiles[1] for name, quartiles in result.floor.over.items()}
        floor = formatting.seconds_text(result.floor.seconds)
        parts.append(f"floor {floor}, {over['ours']:.2f}x, with fused Adam {over['fused']:.2f}x")
    if result.threads is not None:
        parts.append(f"two threads {result.threads[1]:.2f}x")
    if result.bytes:
        sizes = [formatting.bytes_text(result.bytes[side]) for side in ("ours", "neuralforecast")]
        parts.append(f"memory {sizes[0]}, neuralforecast {sizes[1]}, {result.memory_share:.2f}x")
    return f"[models {left}] {result.shape.label}: {'; '.join(parts)}"


def forecast_line(result: InferenceResult, left: str) -> str:
    """Console line of a finished forecast."""
    parts = [formatting.seconds_text(result.seconds["ours"])]
    for side, (_, median, _) in result.ratio.items():
        seconds = formatting.seconds_text(result.seconds[side])
        parts.append(f"{inference.NAMES[side]} {seconds}, {median:.2f}x")
    parts += [f"{inference.NAMES[side]} {reason}" for side, reason in result.missing.items()]
    label = f"{result.shape.label}, batch {result.shape.batch}"
    return f"[models {left}] forecast, {label}: {'; '.join(parts)}"


def chosen(args: argparse.Namespace) -> tuple[list[Shape], list[Shape]]:
    """The training steps and the forecasts that the options select."""
    if args.quick:
        steps = [shape for shape in shapes.quick_plan() if shape.model in args.only]
        forecasts = steps
    else:
        steps = shapes.plan(tuple(args.only), tuple(args.lengths), tuple(args.series))
        forecasts = shapes.inference_plan(tuple(args.only), tuple(args.lengths))
    return (
        steps if "training" in args.part else [],
        forecasts if "inference" in args.part else [],
    )


def rounds_of(args: argparse.Namespace) -> int:
    """As given, or the default."""
    return args.rounds or (3 if args.quick else 15)


def seconds_of(args: argparse.Namespace) -> list[float]:
    """The estimate for each training step, then for each forecast."""
    (steps, forecasts), rounds = chosen(args), rounds_of(args)
    found = [shape.expected_seconds(rounds, not args.no_memory) for shape in steps]
    return found + [shape.expected_forecast_seconds(rounds) for shape in forecasts]


def run(args: argparse.Namespace) -> Record:
    """Measures shape by shape and writes the record after each, in case a later one fails."""
    (steps, forecasts), rounds, memory = chosen(args), rounds_of(args), not args.no_memory
    record = Record({MODELS: training_pair.describe_run() | {"rounds": rounds}}, [])
    print(record.runs[MODELS]["where"])
    left = progress.Progress(seconds_of(args))

    def finished(line: str) -> None:
        print(line, flush=True)
        if args.json is not None:
            record.write(args.json)

    if steps:
        probe = step_time.core_peak(args.build)
    for shape in steps:
        record.models.append(measure_shape(shape, rounds, memory, probe))
        finished(progress_line(record.models[-1], left.advance()))
    cannot_export: dict[str, str] = {}
    for shape in forecasts:
        record.inference.append(inference.measure(shape, rounds, Path(__file__), cannot_export))
        finished(forecast_line(record.inference[-1], left.advance()))
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
    found.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="both by default")
    found.add_argument("--build", type=Path, default=host.ROOT / "build")
    found.add_argument("--quick", action="store_true", help="a tiny shape of each model")
    found.add_argument("--rounds", type=int, help="samples of each side; 15")
    found.add_argument("--no-memory", action="store_true", help="time only")
    found.add_argument("--json", type=Path, help="where the results go")
    found.add_argument("--no-table", action="store_true", help="progress only")
    found.add_argument("--memory-of", choices=step_memory.SIDES, help=argparse.SUPPRESS)
    found.add_argument("--export-with", choices=onnx_runtime.EXPORTERS, help=argparse.SUPPRESS)
    found.add_argument("--export-to", type=Path, help=argparse.SUPPRESS)
    found.add_argument("--shape", help=argparse.SUPPRESS)
    return found


def main() -> int:
    args = parser().parse_args()
    host.pin(1)
    torch.set_flush_denormal(True)
    if args.memory_of is not None:
        step_memory.measure_here(args.memory_of, Shape(**json.loads(args.shape)))
        return 0
    if args.export_with is not None:
        shape = Shape(**json.loads(args.shape))
        onnx_runtime.export_here(args.export_with, shape, args.export_to)
        return 0
    training_pair.neuralforecast()  # fails at once if it is missing
    record = run(args)
    if not args.no_table:
        print(f"\n{model_report.text(record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
