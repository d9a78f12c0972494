"""What NaN and Inf cost: the time of a call with some in its inputs over that of a finite one.

    .venv/bin/python bench/attention/non_finite.py [avx2|avx512|native]

One thread, calls timed in turns, median of 15 rounds. A diverged model must not look like a hang,
so no ratio may exceed MOST, in any direction, with any option.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flash_attention  # noqa: F401  (registers torch.ops.flash)
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.common import host, timing

MOST = 2.0
ROUNDS = 15
NAN, INF = math.nan, math.inf
SHAPES = {
    "L 1024 D 64": (8, 1024, 1024, 64),
    "L 1024 D 16": (8, 1024, 1024, 16),
    "L 64 D 32": (64, 64, 64, 32),
    "L 1 S 1500 D 64": (8, 1, 1500, 64),
    "L 4 S 8192 D 64": (8, 4, 8192, 64),
}


def options(queries: int, keys: int) -> dict[str, dict[str, Any]]:
    """Keywords of the operator, by name."""
    random = torch.Generator().manual_seed(1)
    mask = torch.rand(queries, keys, generator=random) < 0.7
    bias = torch.randn(queries, keys, generator=random).masked_fill(~mask, -INF)
    padding = (torch.arange(keys) < keys - keys // 8).expand(queries, keys)
    return {
        "plain": {},
        "causal": {"causal": True},
        "window": {"window": (100, 100)},
        "boolean mask": {"bias": mask},
        "padding": {"bias": padding},
        "everything masked": {"bias": torch.zeros(queries, keys, dtype=torch.bool)},
        "bias with -inf": {"bias": bias},
        "causal, softcap, dropout": {"causal": True, "softcap": 5.0, "dropout": 0.1},
    }


def spoil(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Inputs with NaN or Inf, by where it is."""
    inputs = {"query": query, "key": key, "value": value, "gradient": grad}

    def one(name: str, number: float, everywhere: bool = False) -> tuple[Tensor, ...]:
        spoiled = {n: t.clone() if n == name else t for n, t in inputs.items()}
        if everywhere:
            spoiled[name].fill_(number)
        else:
            spoiled[name][..., spoiled[name].size(-2) // 2, 0] = number
        return tuple(spoiled.values())

    everything = tuple(torch.full_like(t, NAN) for t in inputs.values())
    last_query = query.clone()
    last_query[..., -1, 0] = NAN
    return {
        "NaN in the last query": (last_query, key, value, grad),
        "NaN in a key": one("key", NAN),
        "NaN in a value": one("value", NAN),
        "values NaN": one("value", NAN, everywhere=True),
        "values Inf": one("value", INF, everywhere=True),
        "queries -Inf": one("query", -INF, everywhere=True),
        "NaN in a gradient": one("gradient", NAN),
        "everything NaN": everything,
    }


def steps(inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> tuple[Callable, Callable]:
    """The forward alone, and the backward alone."""
    *leaves, grad = (t.detach() for t in inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    attention = torch.ops.flash.attention
    out = attention(*leaves, **keywords)

    def forward() -> None:
        with torch.no_grad():
            attention(*leaves, **keywords)

    return forward, lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def run() -> int:
    """Prints the worst ratios and returns how many exceed MOST."""
    host.pin(1)
    print(host.describe(host.machine()))
    print(f"kernels: {flash_attention.build_info().active}\n")
    rows, above = [], 0
    for shape, (heads, queries, keys, width) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)

        def random(length: int, heads: int = heads, width: int = width) -> Tensor:
            return torch.randn(1, heads, length, width, generator=generator)  # noqa: B023

        finite = (random(queries), random(keys), random(keys), random(queries))
        for option, keywords in options(queries, keys).items():
            usual = steps(finite, keywords)
            worst = [(0.0, ""), (0.0, "")]
            for what, inputs in spoil(*finite).items():
                for way, calls in enumerate(zip(usual, steps(inputs, keywords), strict=True)):
                    turns = dict(zip(("finite", "spoiled"), calls, strict=True))
                    times = timing.interleaved(turns, ROUNDS)
                    ratio = timing.median_ratio(times["spoiled"], times["finite"])
                    worst[way] = max(worst[way], (ratio, what))
            above += sum(ratio > MOST for ratio, _ in worst)
            rows.append([shape, option, *(f"{r:.2f} ({what})" for r, what in worst)])
            print(" | ".join(rows[-1]), flush=True)
    print(f"\n{above} of {2 * len(rows)} ratios exceed {MOST}")
    return above


def main() -> None:
    isa = sys.argv[1] if len(sys.argv) > 1 else ""
    if isa:
        command = [sys.executable, __file__]
        sys.exit(subprocess.run(command, env=host.environment(isa)).returncode)
    sys.exit(1 if run() else 0)


if __name__ == "__main__":
    main()
