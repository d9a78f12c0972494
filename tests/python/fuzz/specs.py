"""Random options and shapes for the fuzzer."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from support.problems import Spec

# Around the sizes of registers, register blocks and cache blocks of every kernel.
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
# Around multiples of the 1,024 keys of a decode split; below 2,048 keys nothing is split.
DECODE_KEYS = (64, 65, 127, 200, 1023, 1024, 1025, 2047, 2048, 2049, 3071, 3073, 4100)
# Limits on the elements of the scores, and on these times head_dim: keep a case in milliseconds.
MAX_SCORES = 70_000
MAX_WORK = 1_500_000


def maybe(rng: random.Random, probability: float, value: Any, otherwise: Any = None) -> Any:
    return value if rng.random() < probability else otherwise


def axes(rng: random.Random) -> str:
    """A random shape of any rank that broadcasts to [B, H, L, S]."""
    letters = "".join(maybe(rng, 0.7, letter, "1") for letter in "BHLS")
    return letters[rng.choice([0, 0, 1, 2, 3, 4]) :]


def window(rng: random.Random) -> tuple[int, int]:
    sizes = (-1, 0, 1, 5, 16, 40, 2**62)
    return rng.choice(sizes), rng.choice(sizes)


def random_options(rng: random.Random) -> dict[str, Any]:
    """Fields of a Spec: any combination of options, and any layout."""
    options: dict[str, Any] = {
        "layout": rng.choice(
            ["contiguous"] * 3
            + ["transposed", "expanded", "last-dim-strided", "column-major", "offset"]
        ),
        "causal": rng.random() < 0.4,
        "positions": maybe(rng, 0.2, rng.choice(["L", "HL", "BHL", "B1L"])),
        "window": maybe(rng, 0.3, window(rng)),
        "alibi": maybe(rng, 0.2, rng.choice(["H", "BH"])),
        "softcap": maybe(rng, 0.2, rng.choice([0.4, 1.5, 20.0]), 0.0),
        "sinks": maybe(rng, 0.2, rng.choice(["H", "BH"])),
        "scale": maybe(rng, 0.2, rng.choice([0.0, -0.4, 0.1, 2.0])),
        "dropout": maybe(rng, 0.2, rng.choice([0.1, 0.5, 1.0]), 0.0),
        "block_size": rng.choice([64, 64, 1, 7, 32, 100, 256, 10**9]),
        "use_simd": rng.random() < 0.9,
    }
    kind = rng.random()
    if kind < 0.3:
        options |= {
            "bias": axes(rng),
            "bias_grad": rng.random() < 0.8,
            "excluded_by_bias": rng.random() < 0.3,
        }
    elif kind < 0.5:
        options["mask"] = axes(rng)
    return options


def random_heads(rng: random.Random) -> dict[str, int]:
    """Fields of a Spec: head counts, possibly grouped, and the rank."""
    key_heads, value_heads = rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2, 3])
    heads = math.lcm(key_heads, value_heads) * rng.choice([1, 1, 2])
    rank = rng.choice([3, 4, 4, 4])
    if rank == 3:
        heads = key_heads = value_heads = 1
    return {"heads": heads, "key_heads": key_heads, "value_heads": value_heads, "rank": rank}


def random_spec(rng: random.Random, share: float = 1.0) -> Spec:
    """Lengths around every block size; `share` scales the limit on the work."""
    spec = Spec(
        **random_heads(rng),
        batch=rng.choice([1, 1, 2, 3]),
        queries=maybe(rng, 0.02, 0, rng.choice(LENGTHS)),
        keys=maybe(rng, 0.02, 0, rng.choice(LENGTHS)),
        head_dim=rng.choice(WIDTHS),
        value_dim=rng.choice(WIDTHS),
        **random_options(rng),
    )
    while _relative_work(spec) > share:
        spec = replace(spec, queries=spec.queries // 2 + 1, keys=spec.keys // 2 + 1)
    return spec


def random_decode_spec(rng: random.Random) -> Spec:
    """One or a few queries against many keys."""
    spec = Spec(
        **random_heads(rng),
        batch=rng.choice([1, 1, 2]),
        queries=rng.choice([1, 1, 2, 3, 4, 5, 7, 8, 9]),
        keys=rng.choice(DECODE_KEYS),
        head_dim=rng.choice(WIDTHS),
        value_dim=rng.choice((*WIDTHS, 255, 257, 300)),
        **random_options(rng),
    )
    while _relative_work(spec) > 1:
        one = {"batch": 1, "heads": 1, "key_heads": 1, "value_heads": 1}
        narrower = {"head_dim": spec.head_dim // 2 + 1, "value_dim": spec.value_dim // 2 + 1}
        spec = replace(spec, **(one if spec.batch * spec.heads > 1 else narrower))
    return spec


def _relative_work(spec: Spec) -> float:
    """The work of a case relative to the limit."""
    scores = spec.batch * spec.heads * spec.queries * spec.keys
    return max(scores / MAX_SCORES, scores * (spec.head_dim + spec.value_dim) / MAX_WORK)
