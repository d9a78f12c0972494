"""Calls of the operator drawn at random, held to the float64 truth or to the error that is due.

    python tests/python/fuzzing.py --cases 10000        # from seed 0 on
    python tests/python/fuzzing.py --first 4711 --cases 1   # one of them again

A case is a function of its number. Three kinds: a valid call, whose output, lse and gradients are
compared; one with NaN or infinite numbers, of which must come what the definition makes of them;
and one with a mistake, which must be refused in words.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flash_attention
import torch
from checks import check
from problems import DTYPES, NARROW, Problem, Spec, make_problem
from reference import scores_and_values, with_sink
from tolerances import CLOSE, FUZZED_BAD_TIMES_CLOSE, FUZZED_SLACK
from torch import Tensor

# Around the widths of registers, tiles and blocks of every kernel.
LENGTHS = (
    1,
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    47,
    48,
    49,
    63,
    64,
    65,
    96,
    127,
    129,
    257,
)
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 80, 96, 128, 129)
# Elements of the scores times the width: keeps a case in milliseconds.
MOST_WORK = 3_000_000


def _maybe(draw: random.Random, probability: float, value: Any, otherwise: Any = None) -> Any:
    return value if draw.random() < probability else otherwise


def _axes(draw: random.Random) -> str:
    """A shape that broadcasts to [B, H, L, S], of any rank."""
    letters = "".join(_maybe(draw, 0.7, letter, "1") for letter in "BHLS")
    return letters[draw.choice([0, 0, 1, 2, 3, 4]) :]


def _window(draw: random.Random) -> tuple[int, int]:
    sizes = (-1, 0, 1, 5, 16, 40, 2**62)
    return draw.choice(sizes), draw.choice(sizes)


def draw_spec(draw: random.Random) -> Spec:
    """Any options together."""
    key_heads, value_heads = draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2, 3])
    heads = math.lcm(key_heads, value_heads) * draw.choice([1, 1, 2])
    rank = draw.choice([3, 4, 4, 4])
    if rank == 3:
        heads = key_heads = value_heads = 1
    spec = Spec(
        batch=draw.choice([1, 1, 2, 3]),
        heads=heads,
        key_heads=key_heads,
        value_heads=value_heads,
        queries=_maybe(draw, 0.02, 0, draw.choice(LENGTHS)),
        keys=_maybe(draw, 0.02, 0, draw.choice(LENGTHS)),
        head_dim=draw.choice(WIDTHS),
        value_dim=draw.choice(WIDTHS),
        rank=rank,
        layout=draw.choice(
            ["contiguous"] * 3
            + ["transposed", "expanded", "last-dim-strided", "column-major", "offset"]
        ),
        causal=draw.random() < 0.4,
        positions=_maybe(draw, 0.2, draw.choice(["L", "HL", "BHL", "B1L"])),
        window=_maybe(draw, 0.3, _window(draw)),
        alibi=_maybe(draw, 0.2, draw.choice(["H", "BH"])),
        softcap=_maybe(draw, 0.2, draw.choice([0.4, 1.5, 20.0]), 0.0),
        sinks=_maybe(draw, 0.2, draw.choice(["H", "BH"])),
        scale=_maybe(draw, 0.2, draw.choice([0.0, -0.4, 0.1, 2.0])),
        dropout=_maybe(draw, 0.2, draw.choice([0.1, 0.5, 1.0]), 0.0),
        block_size=draw.choice([64, 64, 1, 7, 32, 100, 256, 10**9]),
        use_simd=draw.random() < 0.9,
    )
    kind = draw.random()
    if kind < 0.3:
        spec = replace(
            spec,
            bias=_axes(draw),
            bias_grad=draw.random() < 0.8,
            excluded_by_bias=draw.random() < 0.3,
        )
    elif kind < 0.5:
        spec = replace(spec, mask=_axes(draw))
    while _work(spec) > MOST_WORK:
        spec = replace(spec, queries=spec.queries // 2 + 1, keys=spec.keys // 2 + 1)
    return spec


def _work(spec: Spec) -> int:
    scores = spec.batch * spec.heads * spec.queries * spec.keys
    return scores * (spec.head_dim + spec.value_dim)


# --- numbers that are none ----------------------------------------------------------------------


def poison(problem: Problem, draw: random.Random) -> None:
    """Puts NaN or an infinity into some places of one input."""
    names = [n for n, t in problem.inputs.items() if t.is_floating_point() and t.numel()]
    name = draw.choice(names)
    # An infinite value times a weight that underflows is NaN, or 0 where it does not: left out.
    bad = math.nan if name == "value" else draw.choice([math.nan, math.inf, -math.inf])
    own = problem.inputs[name].clone(memory_format=torch.contiguous_format)
    for _ in range(draw.choice([1, 1, 3])):
        own.view(-1)[draw.randrange(own.numel())] = bad
    problem.inputs[name] = own


def expected_of_bad(problem: Problem) -> Tensor:
    """The output as the definition has it, no key counting for a query that may not attend it."""
    inputs = {n: t.double() if t.is_floating_point() else t for n, t in problem.inputs.items()}
    options = problem.options
    parts = scores_and_values(
        inputs,
        causal=options["causal"],
        query_positions=options.get("query_positions"),
        window=options["window"],
        softcap=options["softcap"],
        scale=options["scale"],
    )
    scores = with_sink(parts.final, inputs.get("sinks"))
    empty = ~parts.allowed.any(-1, keepdim=True)
    weights = torch.softmax(scores, -1)[..., : parts.final.size(-1)].masked_fill(empty, 0.0)
    out = weights.masked_fill(~parts.allowed, 0.0) @ parts.value.nan_to_num(0.0)
    hit = parts.allowed.double() @ parts.value.isnan().double() > 0
    out = out.masked_fill(hit, math.nan)
    return out.squeeze(1) if inputs["query"].dim() == 3 else out


def check_bad_numbers(problem: Problem) -> None:
    with torch.no_grad():
        out = flash_attention.attention(**problem.inputs, **problem.options)
    expected = expected_of_bad(problem)
    assert out.shape == expected.shape
    allowed = FUZZED_BAD_TIMES_CLOSE * CLOSE[problem.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=allowed, atol=allowed, equal_nan=True)


# --- mistakes -----------------------------------------------------------------------------------


def another_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else torch.float64


@dataclass(frozen=True)
class Mistake:
    """Breaks the arguments of a valid 4-D call, which must then raise `error` and name `word`."""

    error: type[Exception]
    word: str
    make: Callable[[dict[str, Any]], dict[str, Any]]


def _longer(x: Tensor, dim: int) -> Tensor:
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


MISTAKES = {
    "value shorter": Mistake(
        ValueError, "value", lambda a: {"value": a["value"].narrow(-2, 0, a["value"].size(-2) - 1)}
    ),
    "key longer": Mistake(ValueError, "key", lambda a: {"key": _longer(a["key"], -2)}),
    "key wider": Mistake(ValueError, "key", lambda a: {"key": _longer(a["key"], -1)}),
    "batches": Mistake(ValueError, "batch", lambda a: {"key": _longer(a["key"], 0)}),
    "dtypes": Mistake(
        TypeError, "dtype", lambda a: {"value": a["value"].to(another_dtype(a["value"].dtype))}
    ),
    "integers": Mistake(
        TypeError, "Long", lambda a: {n: a[n].long() for n in ("query", "key", "value")}
    ),
    "dropout": Mistake(ValueError, "dropout", lambda _: {"dropout": 1.5}),
    "dropout NaN": Mistake(ValueError, "dropout", lambda _: {"dropout": math.nan}),
    "block_size": Mistake(ValueError, "block_size", lambda _: {"block_size": 0}),
    "window": Mistake(ValueError, "window", lambda _: {"window": (-2, 0)}),
    "softcap": Mistake(ValueError, "softcap", lambda _: {"softcap": -1.0}),
    "bias": Mistake(
        ValueError, "bias", lambda a: {"bias": a["query"].new_zeros(a["key"].size(-2) + 2)}
    ),
    "bias dtype": Mistake(TypeError, "bias", lambda _: {"bias": torch.zeros((), dtype=torch.long)}),
    "slopes": Mistake(
        ValueError,
        "alibi_slopes",
        lambda a: {"alibi_slopes": a["query"].new_zeros(a["query"].size(1) + 1)},
    ),
    "sinks": Mistake(ValueError, "sinks", lambda a: {"sinks": a["query"].new_zeros(())}),
    "positions": Mistake(
        TypeError, "query_positions", lambda a: {"query_positions": a["query"].new_zeros(1)}
    ),
}


def check_mistake(problem: Problem, mistake: Mistake) -> None:
    arguments = problem.inputs | problem.options
    arguments |= mistake.make(arguments)
    try:
        flash_attention.attention(**arguments)
    except mistake.error as error:
        text = str(error)
        assert text.startswith("flash::attention: expected") and mistake.word in text, text
        return
    raise AssertionError(f"expected {mistake.error.__name__} naming {mistake.word}, got a result")


# --- cases --------------------------------------------------------------------------------------


def run_case(number: int) -> str:
    """Checks one case, and says of which kind it was."""
    draw = random.Random(number)
    spec = draw_spec(draw)
    problem = make_problem(spec, draw.choice(DTYPES + NARROW), seed=number)
    kind = draw.random()
    if kind < 0.1 and spec.rank == 4 and spec.queries > 0 and spec.keys > 1:
        name = draw.choice(list(MISTAKES))
        check_mistake(problem, MISTAKES[name])
        return "a mistake"
    if kind < 0.2 and spec.queries > 0 and spec.keys > 0:
        problem = make_problem(replace(spec, dropout=0.0), problem.dtype, seed=number)
        poison(problem, draw)
        check_bad_numbers(problem)
        return "bad numbers"
    check(problem, FUZZED_SLACK)
    return "valid"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    kinds: dict[str, int] = {}
    failures = []
    begin = shown = time.monotonic()
    for number in range(args.first, args.first + args.cases):
        try:
            kind = run_case(number)
        except Exception as error:  # of any kind: all are findings
            failures.append(number)
            print(f"case {number}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        kinds[kind] = kinds.get(kind, 0) + 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            done = number + 1 - args.first
            left = (shown - begin) / done * (args.cases - done)
            print(f"[fuzz {done}/{args.cases}, {left:.0f} s left] {len(failures)} failures")
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    isa = flash_attention.build_info().active
    print(
        f"{args.cases} cases on {isa} in {time.monotonic() - begin:.0f} s: {counts}; "
        f"{len(failures)} failures"
    )
    if failures:
        again = f"python tests/python/fuzzing.py --first {failures[0]} --cases 1"
        sys.exit(f"expected no failure, got cases {failures[:20]}; try {again}")


if __name__ == "__main__":
    main()
