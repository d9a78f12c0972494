"""Measures the operator and the models beside others and judges them; `make bench` calls this.

    python bench/run.py                              # every point, at every instruction set
    python bench/run.py --quick                      # a few small points: seconds
    python bench/run.py --isa avx2 --strict          # one instruction set; status 1 on a shortfall
    python bench/run.py --length 300 --head-dim 48   # one shape of your own
    python bench/run.py --only models                # the models alone, or the attention

Attention beside torch's own and the textbook's: one process per instruction set, to which torch is
held, too. Training steps of the models beside neuralforecast's: bench/models.py. One core, one
thread, and all candidates take turns, so that a slow moment of a shared machine falls on all of
them. To out/bench go results.json, results.md and pictures; `--record` also keeps the numbers in
bench/results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import flash_attention
import measure
import model_targets
import pictures
import progress
import report
import results
import speed
import targets
from results import Record

import models

ISAS = ("avx2", "avx512")
PARTS = ("attention", "models")


def supported() -> list[str]:
    """Which of the instruction sets that can be compared this CPU runs."""
    found = {isa.name for isa in flash_attention.build_info().isa if isa.supported}
    return [isa for isa in ISAS if isa in found]


def record_path() -> Path:
    """Where this CPU's numbers are kept."""
    folder = measure.ROOT / "bench" / "results"
    return folder / f"{measure.slug(measure.cpu_name())}.json"


def child_options(args: argparse.Namespace) -> list[str]:
    """The options of `speed.add_options`, handed on."""
    options = [f"--build={args.build}", f"--rounds={speed.rounds_of(args)}"]
    options += [f"--{name}" for name in ("quick", "full") if getattr(args, name)]
    options += [f"--group={args.group}"] if args.group else []
    if args.length is not None:
        names = ("length", "head_dim", "heads", "batch", "dtype")
        options += [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    return options


def run_isa(args: argparse.Namespace, isa: str, later: float) -> Record:
    """Measures in a process that is held to `isa`; `later` is what is expected to follow."""
    path = args.output / f"{isa}.json"
    command = [sys.executable, str(Path(speed.__file__)), f"--isa={isa}", f"--json={path}"]
    command += [f"--later={later}", *child_options(args)]
    status = subprocess.run(command, env=measure.environment(isa)).returncode
    if status != 0:
        sys.exit(f"bench/run.py: measuring at {isa} ended with status {status}")
    return results.read(path)


def models_options(args: argparse.Namespace) -> list[str]:
    """What bench/models.py is to do."""
    return [f"--rounds={speed.rounds_of(args)}", *(["--quick"] if args.quick else [])]


def models_seconds(args: argparse.Namespace) -> float:
    """What bench/models.py is expected to take."""
    chosen = models.parser().parse_args(models_options(args))
    return models.expected_seconds(models.chosen(chosen), models.rounds_of(chosen))


def run_models(args: argparse.Namespace) -> Record:
    """Measures with the Python that has the originals, each side with all its instructions."""
    path = args.output / "models.json"
    command = [str(args.originals), str(Path(models.__file__)), f"--json={path}", "--no-table"]
    status = subprocess.run(command + models_options(args), env=measure.environment("native"))
    if status.returncode != 0:
        sys.exit(f"bench/run.py: measuring the models ended with status {status.returncode}")
    return results.read(path)


def run_attention(args: argparse.Namespace, isas: list[str], later: float) -> Record:
    """One instruction set after the other; `later` is what is expected to follow all of them."""
    rounds = speed.rounds_of(args)
    plans = {isa: speed.chosen(args, isa) for isa in isas}
    seconds = {isa: progress.expected_seconds(plan, rounds) for isa, plan in plans.items()}
    print(
        f"{sum(map(len, plans.values()))} points at {', '.join(isas)}, {rounds} rounds each: about "
        f"{progress.minutes_text(sum(seconds.values()))}"
        + (f", then the models: {progress.minutes_text(later)}" if later else ""),
        flush=True,
    )
    record = Record({}, [])
    for isa in isas:
        rest = sum(seconds[other] for other in isas[isas.index(isa) + 1 :])
        record = record.merged(run_isa(args, isa, rest + later))
    return record


def write(record: Record, args: argparse.Namespace) -> list[Path]:
    """Numbers, page and pictures; returns the files."""
    files = [args.output / "results.json", args.output / "results.md"]
    record.write(files[0])
    files[1].write_text(report.page(record))
    if args.record:
        kept = record_path()
        older = results.read(kept) if kept.is_file() else Record({}, [])
        older.merged(record, args.group).write(kept, short=True)
        files.append(kept)
    return files + pictures.draw(record, args.output)


def show(record: Record, args: argparse.Namespace, files: list[Path]) -> None:
    """Everything on the console but the verdicts."""
    for isa in record.isas:
        if args.length is not None:
            print(f"\n{isa}:\n{report.points_table(record.of(isa))}")
        else:
            print(f"\nTime at a block size over that at the default, {isa}:")
            print(report.block_table(record.of(isa, "block size")))
    print("\nWritten:")
    for path in files:
        print(f"  {path}")
    if args.quick:
        print("\nA quick run: small shapes and few rounds, so these verdicts say little.")
    if record.models:
        print(f"\nModels:\n{model_targets.table(record.models)}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    speed.add_options(found)
    found.add_argument("--only", choices=PARTS, help="one part; attention with --isa and --length")
    found.add_argument("--isa", choices=ISAS, help="only this instruction set")
    found.add_argument(
        "--originals",
        type=Path,
        default=measure.ROOT / ".venv-neuralforecast" / "bin" / "python",
        help="the Python that has neuralforecast and this package",
    )
    found.add_argument("--output", type=Path, default=measure.ROOT / "out" / "bench")
    found.add_argument("--record", action="store_true", help="keep as bench/results/<cpu>.json")
    found.add_argument("--strict", action="store_true", help="exit with 1 on a shortfall")
    return found


def checked_arguments() -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The options and the parts to measure; what cannot work is said before all measuring."""
    found = parser()
    args = found.parse_args()
    partly = args.quick or args.length is not None
    for name in ("record", "strict"):
        if partly and getattr(args, name):
            found.error(f"--{name} is for whole runs: expected it without --quick and --length")
    alone = args.isa is not None or args.length is not None or args.group != ""
    if alone and args.only == "models":
        found.error(
            "--isa, --group and --length are of the attention: expected them without --only models"
        )
    parts = (args.only,) if args.only else PARTS[:1] if alone else PARTS
    if "models" in parts and not args.originals.is_file():
        sys.exit(
            f"bench/run.py: expected a Python with neuralforecast at {args.originals}, found none; "
            "run `make bench`, which sets it up, or leave the models out by --only attention"
        )
    return args, parts


def chosen_isas(args: argparse.Namespace) -> list[str]:
    """What the attention is measured at; ends the program where this CPU has none of it."""
    isas = supported() if args.isa is None else [args.isa]
    if not set(isas) <= set(supported()) or not isas:
        sys.exit(
            f"bench/run.py: expected a CPU with {args.isa or 'AVX2'}, found one that runs "
            f"{', '.join(supported()) or 'only the scalar kernels'}"
        )
    return isas


def main() -> int:
    args, parts = checked_arguments()
    later = models_seconds(args) if "models" in parts else 0.0
    record = Record({}, [])
    if "attention" in parts:
        record = record.merged(run_attention(args, chosen_isas(args), later))
    if "models" in parts:
        print(f"Models beside neuralforecast's: about {progress.minutes_text(later)}", flush=True)
        record = record.merged(run_models(args))
    show(record, args, write(record, args))
    if args.length is not None:
        return 0
    lines = targets.lines(record)
    if lines:
        print(f"\nTargets:\n{targets.report(lines)}")
    lines += model_targets.lines(record.models) if record.models else []
    return int(args.strict and any(line.verdict == "SHORTFALL" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
