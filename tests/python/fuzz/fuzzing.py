"""Randomly generated calls, checked against the float64 reference or the expected error.

    python tests/python/fuzz/fuzzing.py --cases 10000        # from number 0 on
    python tests/python/fuzz/fuzzing.py --first 4711 --cases 1   # one of them again

A case is a function of its number. Its reference is computed once and compared with every
instruction set of this CPU. `KINDS` lists the kinds: valid calls of every entry point, whose
results and gradients are compared; calls with NaN or Inf, which must give what the definition
gives; and invalid calls, which must be refused with an error message.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import flash_attention
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz import calls
from fuzz.invalid import INVALID_CALLS, check_invalid_call
from fuzz.non_finite import check_non_finite, non_finite_definition, poison
from fuzz.specs import random_decode_spec, random_spec
from support.checks import Checker, run
from support.instruction_sets import TESTED_WITH_TILES, kernels
from support.problems import DTYPES, DTYPES_16BIT, Problem, Spec, make_problem
from support.reference import MEMO
from support.tolerances import FUZZ_SLACK

# Rows with NaN may be recomputed key by key, and their reference takes many passes.
NON_FINITE_WORK_SHARE = 0.2


# --- kinds: each generates a case and its reference, and returns the check ----------------------


def check_of(problem: Problem) -> calls.Check:
    """Checks the forward with gradients, the gradients, and the forward without gradients."""
    checker = Checker(problem, FUZZ_SLACK)

    def check() -> None:
        checker.assert_close(run(problem).tensors())
        torch.manual_seed(problem.seed)
        with torch.no_grad():
            out, lse = flash_attention.attention_with_lse(**problem.inputs, **problem.options)
        checker.assert_close({"out": out, "lse": lse})

    return check


def valid(rng: random.Random, dtype: torch.dtype, seed: int) -> calls.Check:
    return check_of(make_problem(random_spec(rng), dtype, seed))


def decoding(rng: random.Random, dtype: torch.dtype, seed: int) -> calls.Check:
    problem = make_problem(random_decode_spec(rng), dtype, seed)
    if "sinks" in problem.inputs and rng.random() < 0.3:
        problem.inputs["sinks"] = problem.inputs["sinks"] * 1000  # far above or below every score
    return check_of(problem)


def non_finite(rng: random.Random, dtype: torch.dtype, seed: int) -> calls.Check:
    spec = random_spec(rng, NON_FINITE_WORK_SHARE)
    if rng.random() < 0.2:
        spec = replace(spec, queries=rng.choice([1, 2, 8]), keys=rng.choice([70, 1100, 2048]))
        spec = replace(spec, heads=1, key_heads=1, value_heads=1, batch=1)
        spec = replace(spec, head_dim=min(spec.head_dim, 17), value_dim=min(spec.value_dim, 33))
    spec = replace(spec, dropout=0.0, queries=max(spec.queries, 1), keys=max(spec.keys, 1))
    problem = make_problem(spec, dtype, seed)
    poison(problem, rng)
    expected = non_finite_definition(problem)
    return lambda: check_non_finite(problem, expected)


def invalid_call(rng: random.Random, dtype: torch.dtype, seed: int) -> calls.Check:
    spec = random_spec(rng)
    if spec.rank != 4:
        spec = replace(Spec(), **{k: v for k, v in vars(spec).items() if k != "rank"})
    spec = replace(spec, queries=max(spec.queries, 1), keys=max(spec.keys, 2))
    problem = make_problem(spec, dtype, seed)
    name = rng.choice(list(INVALID_CALLS))
    return lambda: check_invalid_call(problem, INVALID_CALLS[name])


KINDS: dict[str, tuple[Callable[[random.Random, torch.dtype, int], calls.Check], int]] = {
    # name: (function, cases out of sixteen)
    "valid": (valid, 5),
    "decoding": (decoding, 2),
    "non-finite": (non_finite, 3),
    "packed": (calls.packed, 2),
    "cache": (calls.cached, 1),
    "drop-in": (calls.drop_in, 1),
    "second derivatives": (calls.second_derivatives, 1),
    "invalid call": (invalid_call, 1),
}
TURNS = [name for name, (_, times) in KINDS.items() for _ in range(times)]


def run_case(number: int) -> str:
    """Checks one case on every instruction set and returns its kind."""
    rng = random.Random(number)
    kind = TURNS[number % len(TURNS)]
    check = KINDS[kind][0](rng, rng.choice(DTYPES + DTYPES_16BIT), number)
    for isa in TESTED_WITH_TILES:
        with kernels(isa):
            try:
                check()
            except Exception as error:
                error.add_note(f"with the kernels of {isa}")
                raise
    MEMO.clear()  # no other case needs these references
    return kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    kinds: dict[str, list[float]] = {}
    failures = []
    begin = shown = time.monotonic()
    for number in range(args.first, args.first + args.cases):
        since = time.monotonic()
        try:
            kind = run_case(number)
        except Exception as error:  # any exception is a failure
            failures.append(number)
            where = ", ".join([f"case {number}", *getattr(error, "__notes__", [])])
            print(f"{where}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        kinds.setdefault(kind, []).append(time.monotonic() - since)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            done = number + 1 - args.first
            left = (shown - begin) / done * (args.cases - done)
            print(f"[fuzz {done}/{args.cases}, {left:.0f} s left] {len(failures)} failures")
    counts = ", ".join(
        f"{len(times)} {kind} ({1e3 * sum(times) / len(times):.0f} ms each)"
        for kind, times in sorted(kinds.items())
    )
    print(
        f"{args.cases} cases on {', '.join(TESTED_WITH_TILES)} "
        f"in {time.monotonic() - begin:.0f} s: "
        f"{counts}; {len(failures)} failures"
    )
    if failures:
        again = f"python tests/python/fuzz/fuzzing.py --first {failures[0]} --cases 1"
        sys.exit(f"expected no failure, got cases {failures[:20]}; try {again}")


if __name__ == "__main__":
    main()
