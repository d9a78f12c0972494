"""Measures flash beside torch's own and standard attention and judges it; `make bench` calls this.

    python bench/run.py                              # every point, at every instruction set
    python bench/run.py --quick                      # a few small points: seconds
    python bench/run.py --isa avx2 --strict          # one instruction set; status 1 on a shortfall
    python bench/run.py --length 300 --head-dim 48   # one shape of your own

One process per instruction set, to which torch is held, too; one core, one thread. All candidates
of a point take turns, so that a slow moment of a shared machine falls on all of them. To out/bench
go results.json, results.md and pictures; `--record` also keeps the numbers in bench/results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import flash_attention
import measure
import pictures
import progress
import report
import results
import speed
import targets
from results import Record

ISAS = ("avx2", "avx512")


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


def run_all(args: argparse.Namespace, isas: list[str]) -> Record:
    """One instruction set after the other."""
    rounds = speed.rounds_of(args)
    plans = {isa: speed.chosen(args, isa) for isa in isas}
    seconds = {isa: progress.expected_seconds(plan, rounds) for isa, plan in plans.items()}
    print(
        f"{sum(map(len, plans.values()))} points at {', '.join(isas)}, {rounds} rounds each: about "
        f"{progress.minutes_text(sum(seconds.values()))}",
        flush=True,
    )
    record = Record({}, [])
    for isa in isas:
        later = sum(seconds[other] for other in isas[isas.index(isa) + 1 :])
        record = record.merged(run_isa(args, isa, later))
    return record


def write(record: Record, args: argparse.Namespace) -> list[Path]:
    """Numbers, page and pictures; returns the files."""
    files = [args.output / "results.json", args.output / "results.md"]
    record.write(files[0])
    files[1].write_text(report.page(record))
    if args.record:
        kept = record_path()
        older = results.read(kept) if kept.is_file() else Record({}, [])
        older.merged(record).write(kept, short=True)
        files.append(kept)
    return files + pictures.draw(record, args.output)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    speed.add_options(parser)
    parser.add_argument("--isa", choices=ISAS, help="only this instruction set")
    parser.add_argument("--output", type=Path, default=measure.ROOT / "out" / "bench")
    parser.add_argument("--record", action="store_true", help="keep as bench/results/<cpu>.json")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a shortfall")
    args = parser.parse_args()
    if args.record and (args.quick or args.length is not None):
        parser.error("--record keeps whole runs only: expected it without --quick and --length")
    if args.strict and (args.quick or args.length is not None):
        parser.error("--strict judges whole runs only: expected it without --quick and --length")
    isas = supported() if args.isa is None else [args.isa]
    if not set(isas) <= set(supported()) or not isas:
        sys.exit(
            f"bench/run.py: expected a CPU with {args.isa or 'AVX2'}, found one that runs "
            f"{', '.join(supported()) or 'only the scalar kernels'}"
        )

    record = run_all(args, isas)
    files = write(record, args)
    for isa in isas:
        if args.length is not None:
            print(f"\n{isa}:\n{report.points_table(record.of(isa))}")
        else:
            print(f"\nTime at a block size over that at the default, {isa}:")
            print(report.block_table(record.of(isa, "block size")))
    print("\nWritten:")
    for path in files:
        print(f"  {path}")
    if args.length is not None:
        return 0
    lines = targets.lines(record)
    if args.quick:
        print("\nA quick run: small shapes and few rounds, so these verdicts say little.")
    print(f"\nTargets:\n{targets.report(lines)}")
    return int(args.strict and any(line.verdict == "SHORTFALL" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
