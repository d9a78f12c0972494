"""Measures the operator and the models against others and judges the targets; `make bench`.

    python bench/run.py                              # every point, at every instruction set
    python bench/run.py --quick                      # a few small points: seconds
    python bench/run.py --isa avx2 --strict          # one instruction set; status 1 on a shortfall
    python bench/run.py --group decode               # one group of points, and its targets
    python bench/run.py --length 300 --head-dim 48   # one shape of your own
    python bench/run.py --only models                # only the models, or only the attention

The attention is measured against torch's and against standard attention, in one process per
instruction set, to which torch is restricted as well. models/compare.py measures training steps and
forecasts of the models against neuralforecast's, and the steps against their floor. All candidates
run on one core with one thread and are timed in turns, so that a slow phase of a shared machine
affects all of them alike. out/bench gets
results.json, results.md and pictures; `--record` also updates bench/results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import flash_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.attention import expected_time, points, speed, targets
from bench.common import host
from bench.common.formatting import minutes_text
from bench.models import compare
from bench.report import model_report, pictures, records, repeats, run_tables, verdict
from bench.report.records import Record
from bench.report.verdict import MISSED, Line

PARTS = ("attention", "models")


def supported() -> list[str]:
    """The members of host.ISAS that this CPU supports."""
    found = {isa.name for isa in flash_attention.build_info().isa if isa.supported}
    return [isa for isa in host.ISAS if isa in found]


def record_path() -> Path:
    """The file with this CPU's record."""
    return host.ROOT / "bench" / "results" / f"{host.slug(host.cpu_name())}.json"


def child_options(args: argparse.Namespace) -> list[str]:
    """The options of `speed.add_options`, for the child process."""
    options = [f"--build={args.build}", f"--rounds={speed.rounds_of(args)}"]
    options += [f"--{name}" for name in ("quick", "full") if getattr(args, name)]
    options += [f"--group={args.group}"] if args.group else []
    if args.length is not None:
        names = ("length", "head_dim", "heads", "batch", "dtype")
        options += [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    return options


def run_isa(args: argparse.Namespace, isa: str, later: float) -> Record:
    """Measures in a process restricted to `isa`; `later` estimates the seconds after it."""
    path = args.output / f"{isa}.json"
    command = [sys.executable, str(Path(speed.__file__)), f"--isa={isa}", f"--json={path}"]
    command += [f"--later={later}", *child_options(args)]
    status = subprocess.run(command, env=host.environment(isa)).returncode
    if status != 0:
        sys.exit(f"bench/run.py: measuring at {isa} ended with status {status}")
    return records.read(path)


def models_options(args: argparse.Namespace) -> list[str]:
    """The options of models/compare.py."""
    options = [f"--rounds={speed.rounds_of(args)}", f"--build={args.build}"]
    return options + (["--quick"] if args.quick else [])


def models_seconds(args: argparse.Namespace) -> float:
    """The expected time of models/compare.py."""
    return sum(compare.seconds_of(compare.parser().parse_args(models_options(args))))


def run_models(args: argparse.Namespace) -> Record:
    """Measures with the Python that has neuralforecast, each side with all instruction sets."""
    path = args.output / "models.json"
    command = [str(args.originals), str(Path(compare.__file__)), f"--json={path}", "--no-table"]
    status = subprocess.run(command + models_options(args), env=host.environment("native"))
    if status.returncode != 0:
        sys.exit(f"bench/run.py: measuring the models ended with status {status.returncode}")
    return records.read(path)


def run_attention(args: argparse.Namespace, isas: list[str], later: float) -> Record:
    """One instruction set after another; `later` estimates the seconds after all of them."""
    rounds = speed.rounds_of(args)
    plans = {isa: plan for isa in isas if (plan := speed.chosen(args, isa))}
    if not plans:
        groups = ", ".join(sorted({p.tag for isa in isas for p in points.plan(isa)}))
        sys.exit(
            f"bench/run.py: expected a group that this machine can measure, got {args.group!r}; "
            f"there are {groups}; threads and decode need two cores"
        )
    seconds = {isa: expected_time.expected_seconds(plan, rounds) for isa, plan in plans.items()}
    print(
        f"{sum(map(len, plans.values()))} points at {', '.join(plans)}, {rounds} rounds each: "
        f"about {minutes_text(sum(seconds.values()))}"
        + (f", then the models: {minutes_text(later)}" if later else ""),
        flush=True,
    )
    record = Record({}, [])
    left = sum(seconds.values())
    for isa in plans:
        left -= seconds[isa]
        record = record.merged(run_isa(args, isa, left + later))
    return record


def recorded(record: Record, group: str, path: Path) -> Record:
    """Merges `record` into the file of this CPU, and returns all that the file then holds."""
    older = records.read(path) if path.is_file() else Record({}, [])
    found = repeats.merged(older, record, group)
    found.write(path, short=True)
    return found


def judged(record: Record, kept: Record, group: str) -> list[Line]:
    """The targets of what `record` measured, judged with the repeated runs in `kept`."""
    return [line for line in targets.lines(kept, group) if line.isa in record.isas]


def write(record: Record, lines: list[Line], output: Path) -> list[Path]:
    """Writes results, page and pictures; returns the files."""
    files = [output / "results.json", output / "results.md"]
    record.write(files[0])
    files[1].write_text(run_tables.page(record, lines))
    return files + pictures.draw(record, output)


def show(record: Record, args: argparse.Namespace, files: list[Path]) -> None:
    """Prints everything but the targets of the attention."""
    for isa in record.isas:
        if args.length is not None:
            print(f"\n{isa}:\n{run_tables.points_table(record.of(isa))}")
        elif blocks := record.of(isa, "block size"):
            print(f"\nTime at a block size over that at the default, {isa}:")
            print(run_tables.block_table(blocks))
    print("\nWritten:")
    for path in files:
        print(f"  {path}")
    if args.quick:
        print("\nA quick run has small shapes and few rounds: its verdicts mean little.")
    if record.models:
        print(f"\nModels:\n{model_report.text(record)}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    speed.add_options(found)
    found.add_argument("--only", choices=PARTS, help="one part; attention with --isa and --length")
    found.add_argument("--isa", choices=host.ISAS, help="only this instruction set")
    found.add_argument(
        "--originals",
        type=Path,
        default=host.ROOT / ".venv-neuralforecast" / "bin" / "python",
        help="the Python that has neuralforecast and this package",
    )
    found.add_argument("--output", type=Path, default=host.ROOT / "out" / "bench")
    found.add_argument("--record", action="store_true", help="update bench/results/<cpu>.json")
    found.add_argument("--strict", action="store_true", help="exit with 1 on a shortfall")
    return found


def checked_arguments() -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The options and the parts to measure; exits at once if they cannot work."""
    found = parser()
    args = found.parse_args()
    partly = args.quick or args.length is not None
    for name in ("record", "strict"):
        if partly and getattr(args, name):
            found.error(f"--{name} is for whole runs: expected it without --quick and --length")
    alone = args.isa is not None or args.length is not None or args.group != ""
    if alone and args.only == "models":
        found.error(
            "--isa, --group and --length select attention: expected them without --only models"
        )
    parts = (args.only,) if args.only else PARTS[:1] if alone else PARTS
    if "models" in parts and not args.originals.is_file():
        sys.exit(
            f"bench/run.py: expected a Python with neuralforecast at {args.originals}, found none; "
            "run `make bench`, which sets it up, or skip the models with --only attention"
        )
    return args, parts


def chosen_isas(args: argparse.Namespace) -> list[str]:
    """The instruction sets to measure; exits if this CPU does not support them."""
    isas = supported() if args.isa is None else [args.isa]
    if not set(isas) <= set(supported()) or not isas:
        sys.exit(
            f"bench/run.py: expected a CPU with {args.isa or 'AVX2'}, found one that supports "
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
        print(f"Models against neuralforecast's: about {minutes_text(later)}", flush=True)
        record = record.merged(run_models(args))
    kept = record
    if args.record:
        kept = recorded(record, args.group, record_path())
        record.repeats = kept.repeats
    lines = [] if args.length is not None else judged(record, kept, args.group)
    files = write(record, lines, args.output)
    show(record, args, [*files, record_path()] if args.record else files)
    if lines:
        print(f"\nTargets:\n{verdict.report(lines)}")
    if record.models:
        lines += model_report.lines(record)
    return int(args.strict and any(line.verdict == MISSED for line in lines))


if __name__ == "__main__":
    sys.exit(main())
