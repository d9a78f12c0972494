"""Random options and shapes for the fuzzer."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from problems import Spec

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
# Around the parts of 1,024 keys that decoding cuts, of which there are none below two.
DECODED_KEYS = (64, 65, 127, 200, 1023, 1024, 1025, 2047, 2048, 2049, 3071, 3073, 4100)
# Elements of the scores, and these times the width: keeps a case in milliseconds.
MOST_SCORES = 70_000
MOST_WORK = 1_500_000


def maybe(draw: random.Random, probability: float, value: Any, otherwise: Any = None) -> Any:
    return value if draw.random() < probability else otherwise


def axes(draw: random.Random) -> str:
    """A shape that broadcasts to [B, H, L, S], of any rank."""
    letters = "".join(maybe(draw, 0.7, letter, "1") for letter in "BHLS")
    return letters[draw.choice([0, 0, 1, 2, 3, 4]) :]


def window(draw: random.Random) -> tuple[int, int]:
    sizes = (-1, 0, 1, 5, 16, 40, 2**62)
    return draw.choice(sizes), draw.choice(sizes)


def draw_options(draw: random.Random) -> dict[str, Any]:
    """Fields of a Spec: any options together, and any layout."""
    options: dict[str, Any] = {
        "layout": draw.choice(
            ["contiguous"] * 3
            + ["transposed", "expanded", "last-dim-strided", "column-major", "offset"]
        ),
        "causal": draw.random() < 0.4,
        "positions": maybe(draw, 0.2, draw.choice(["L", "HL", "BHL", "B1L"])),
        "window": maybe(draw, 0.3, window(draw)),
        "alibi": maybe(draw, 0.2, draw.choice(["H", "BH"])),
        "softcap": maybe(draw, 0.2, draw.choice([0.4, 1.5, 20.0]), 0.0),
        "sinks": maybe(draw, 0.2, draw.choice(["H", "BH"])),
        "scale": maybe(draw, 0.2, draw.choice([0.0, -0.4, 0.1, 2.0])),
        "dropout": maybe(draw, 0.2, draw.choice([0.1, 0.5, 1.0]), 0.0),
        "block_size": draw.choice([64, 64, 1, 7, 32, 100, 256, 10**9]),
        "use_simd": draw.random() < 0.9,
    }
    kind = draw.random()
    if kind < 0.3:
        options |= {
            "bias": axes(draw),
            "bias_grad": draw.random() < 0.8,
            "excluded_by_bias": draw.random() < 0.3,
        }
    elif kind < 0.5:
        options["mask"] = axes(draw)
    return options


def draw_heads(draw: random.Random) -> dict[str, int]:
    """Fields of a Spec: heads, some of them shared, and how many dimensions there are."""
    key_heads, value_heads = draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2, 3])
    heads = math.lcm(key_heads, value_heads) * draw.choice([1, 1, 2])
    rank = draw.choice([3, 4, 4, 4])
    if rank == 3:
        heads = key_heads = value_heads = 1
    return {"heads": heads, "key_heads": key_heads, "value_heads": value_heads, "rank": rank}


def draw_spec(draw: random.Random, share: float = 1.0) -> Spec:
    """Lengths around every tile and block; `share`: of the work that a case may take."""
    spec = Spec(
        **draw_heads(draw),
        batch=draw.choice([1, 1, 2, 3]),
        queries=maybe(draw, 0.02, 0, draw.choice(LENGTHS)),
        keys=maybe(draw, 0.02, 0, draw.choice(LENGTHS)),
        head_dim=draw.choice(WIDTHS),
        value_dim=draw.choice(WIDTHS),
        **draw_options(draw),
    )
    while _excess(spec) > share:
        spec = replace(spec, queries=spec.queries // 2 + 1, keys=spec.keys // 2 + 1)
    return spec


def draw_decoding(draw: random.Random) -> Spec:
    """Few queries over many keys."""
    spec = Spec(
        **draw_heads(draw),
        batch=draw.choice([1, 1, 2]),
        queries=draw.choice([1, 1, 2, 3, 4, 5, 7, 8, 9]),
        keys=draw.choice(DECODED_KEYS),
        head_dim=draw.choice(WIDTHS),
        value_dim=draw.choice((*WIDTHS, 255, 257, 300)),
        **draw_options(draw),
    )
    while _excess(spec) > 1:
        one = {"batch": 1, "heads": 1, "key_heads": 1, "value_heads": 1}
        narrower = {"head_dim": spec.head_dim // 2 + 1, "value_dim": spec.value_dim // 2 + 1}
        spec = replace(spec, **(one if spec.batch * spec.heads > 1 else narrower))
    return spec


def _excess(spec: Spec) -> float:
    """The work of a case beside the most that it may take."""
    scores = spec.batch * spec.heads * spec.queries * spec.keys
    return max(scores / MOST_SCORES, scores * (spec.head_dim + spec.value_dim) / MOST_WORK)
