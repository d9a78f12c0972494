"""Runs flash_attention_benchmark, this project's Google Benchmark, and draws its results.

    python=.venv/bin/python
    $python bench/attention/google_benchmark.py           # lengths at D 64, head_dims at L 1024
    $python bench/attention/google_benchmark.py --quick   # three lengths, float32, forward: seconds
    $python bench/attention/google_benchmark.py --full    # every length and head_dim: half an hour

It times calls from C++, each candidate to its end before the next one. Speed is judged by
`bench/run.py`, which times them in turns. out/google_benchmark gets the output of Google Benchmark
and a short form of it, which `google_pictures.py` draws.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.attention import google_pictures
from bench.common import host
from bench.report import records

# Google Benchmark appends /real_time to each name, so a slash follows the last argument.
SWEEPS = {
    "default": "/(L:[0-9]+/D:64|L:1024/D:[0-9]+)/",
    "quick": "Forward/.*/f32/.*/L:(64|256|1024)/D:64/",
    "full": "/",
}
NAME = re.compile(
    r"(?P<direction>\w+)/(?P<method>\w+)/(?P<dtype>f32|f64)/(?P<mask>full|causal)"
    r"/L:(?P<length>\d+)/D:(?P<head_dim>\d+)/"
)


def run_benchmark(args: argparse.Namespace, sweep: str, raw: Path) -> None:
    """Runs the executable, which prints its progress and writes its JSON to `raw`."""
    executable = args.build / "bench" / "flash_attention_benchmark"
    if not executable.is_file():
        sys.exit(
            f"bench/attention/google_benchmark.py: expected {executable}, found none; run "
            "`make compile-all`, or name a build directory with --build (configured with "
            "-DFLASH_ATTENTION_BUILD_BENCH=ON)"
        )
    raw.parent.mkdir(parents=True, exist_ok=True)
    command = [
        executable,
        f"--threads={args.threads}",
        f"--benchmark_filter={SWEEPS[sweep]}",
        f"--benchmark_min_time={args.min_time}",
        f"--benchmark_out={raw}",
        "--benchmark_out_format=json",
    ]
    environment = host.environment(args.isa)
    status = subprocess.run([str(word) for word in command], env=environment).returncode
    if status != 0:
        sys.exit(f"bench/attention/google_benchmark.py: {executable} ended with status {status}")


def shorten(raw: dict[str, Any]) -> dict[str, Any]:
    """The machine, and of each benchmark its parameters, seconds per call and FLOP/s."""
    context = raw["context"]
    build = json.loads(context["flash_build_info"])
    rows = []
    for entry in raw["benchmarks"]:
        fields: dict[str, Any] = NAME.match(entry["name"]).groupdict()
        fields["length"] = int(fields["length"])
        fields["head_dim"] = int(fields["head_dim"])
        fields["seconds"] = float(f"{entry['real_time'] * 1e-3:.4g}")  # real_time is in ms
        fields["flops_per_second"] = float(f"{entry['FLOP/s']:.4g}")
        rows.append(fields)
    where = host.machine() | {
        "threads": int(context["threads"]),
        "torch_cpu_capability": context["torch_cpu_capability"],
        "date": context["date"][:10],
    }
    return {
        "where": host.describe(where, build["active"]),
        "machine": where,
        "heads": int(context["heads"]),
        "results": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sweeps = parser.add_mutually_exclusive_group()
    sweeps.add_argument("--quick", action="store_true", help="three lengths, float32, forward")
    sweeps.add_argument("--full", action="store_true", help="every length and head_dim")
    parser.add_argument("--build", type=Path, default=host.ROOT / "build")
    parser.add_argument("--output", type=Path, default=host.ROOT / "out" / "google_benchmark")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--isa",
        choices=["native", "avx2", "avx512"],
        default="native",
        help="native: each library at its best; otherwise all at one instruction set",
    )
    parser.add_argument("--min-time", type=float, default=0.1, help="seconds per benchmark")
    args = parser.parse_args()
    sweep = "quick" if args.quick else "full" if args.full else "default"

    raw = args.output / "google_benchmark.json"
    run_benchmark(args, sweep, raw)
    record = shorten(json.loads(raw.read_text()))
    short = args.output / "results.json"
    head = {name: value for name, value in record.items() if name != "results"}
    records.write_rows(head, {"results": record["results"]}, short)
    files = [raw, short, *google_pictures.draw(record, args.output)]

    print("\nWritten:")
    for path in files:
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
