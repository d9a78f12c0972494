"""Flash attention beside its rivals, one call of each in turn, held to the project's targets.

    python bench/paired.py                  # the targets: float32, 8 heads, D 64, L 1024, AVX2
    python bench/paired.py --length 4096 --head-dim 128 --isa native

One process, one thread, one core; everybody held to the same instruction set. Google Benchmark runs
one candidate to its end before the next, so a slow minute of a shared machine falls on one of them;
here it falls on all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import flash_attention
import measure
import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One comparison; times in seconds, `ratio` = rival / flash, `target` = the least wanted."""

    what: str
    rival: str
    flash_seconds: float
    rival_seconds: float
    ratio: float
    low_quartile: float
    high_quartile: float
    target: float | None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "pass" if self.ratio >= self.target else "SHORTFALL"


# (backward too, causal, rival) -> least ratio; the rows without a target are there to be read.
TARGETS: dict[tuple[bool, bool, str], float | None] = {
    (False, False, "standard"): 1.5,
    (False, True, "standard"): 3.0,
    (False, False, "torch"): None,
    (False, True, "torch"): None,
    (True, False, "standard"): None,
    (True, True, "standard"): None,
    (True, False, "torch"): 1.0,
    (True, True, "torch"): 1.0,
}


def attentions(length: int, causal: bool, dtype: torch.dtype) -> dict[str, Attention]:
    """The candidates, as a user would write each."""
    mask = measure.causal_mask(length, dtype) if causal else None
    return {
        "flash": lambda q, k, v: flash_attention.attention(q, k, v, causal=causal),
        "standard": lambda q, k, v: measure.textbook(q, k, v, mask),
        "torch": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
    }


def compare(args: argparse.Namespace, backward: bool, causal: bool) -> list[Row]:
    """Times the candidates in turns."""
    dtype = getattr(torch, args.dtype)
    shape = (1, args.heads, args.length, args.head_dim)
    inputs = measure.qkv(shape, dtype, grad=backward)
    grad = torch.ones(shape, dtype=dtype)

    def step(attention: Attention) -> object:
        out = attention(*inputs)
        return torch.autograd.grad(out, inputs, grad) if backward else out

    calls = {
        name: (lambda attention=attention: step(attention))
        for name, attention in attentions(args.length, causal, dtype).items()
    }
    times = measure.interleaved(calls, args.rounds)
    rows = []
    for rival in ("standard", "torch"):
        ratios = [r / f for r, f in zip(times[rival], times["flash"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            Row(
                what=("forward + backward" if backward else "forward")
                + (", causal" if causal else ""),
                rival=rival,
                flash_seconds=statistics.median(times["flash"]),
                rival_seconds=statistics.median(times[rival]),
                ratio=quartiles[1],
                low_quartile=quartiles[0],
                high_quartile=quartiles[2],
                target=TARGETS[backward, causal, rival],
            )
        )
    return rows


def report(rows: list[Row]) -> str:
    """The rows as a table, and in words whether the targets are reached."""
    header = ["what", "rival", "flash", "rival's", "times as fast"]
    header += ["quartiles", "target", "verdict"]
    cells = [
        [
            row.what,
            row.rival,
            measure.seconds_text(row.flash_seconds),
            measure.seconds_text(row.rival_seconds),
            f"{row.ratio:.2f}",
            f"{row.low_quartile:.2f}-{row.high_quartile:.2f}",
            "" if row.target is None else f">= {row.target:g}",
            row.verdict,
        ]
        for row in rows
    ]
    judged = [row for row in rows if row.target is not None]
    short = [row for row in judged if row.verdict != "pass"]
    lines = [f"{len(judged) - len(short)} of {len(judged)} targets reached"]
    lines += [
        f"shortfall: {row.what} against {row.rival}: {row.ratio:.2f}, wanted {row.target:g}"
        for row in short
    ]
    return measure.table(header, cells, left=2) + "\n\n" + "; ".join(lines) + "."


def measure_here(args: argparse.Namespace) -> int:
    """In the child: pin, time, print."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = measure.machine()
    print(measure.describe(where))
    print(
        f"{args.dtype}, {args.heads} heads, L {args.length}, D {args.head_dim}; kernels of this "
        f"project: {flash_attention.build_info().active}; median of {args.rounds} rounds"
    )
    rows = []
    for backward in (False, True):
        for causal in (False, True):
            rows += compare(args, backward, causal)
    rows.sort(key=lambda row: row.target is None)
    print(report(rows))
    if args.json is not None:
        settings = {k: getattr(args, k) for k in ("dtype", "heads", "length", "head_dim", "rounds")}
        record = {"machine": where, **settings, "rows": [asdict(row) for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(args.strict and any(row.verdict == "SHORTFALL" for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--rounds", type=int, default=21, help="samples of each candidate")
    parser.add_argument("--isa", choices=["avx2", "native"], default="avx2")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a shortfall")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return measure_here(args)
    command = [sys.executable, *sys.argv, "--child"]
    return subprocess.run(command, env=measure.environment(args.isa)).returncode


if __name__ == "__main__":
    sys.exit(main())
