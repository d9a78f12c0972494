"""Parts of a call, on each instruction set: they sum to the whole, with the mask of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flash_attention.distributed.parts import (
    Options,
    Rows,
    Saved,
    backward_of_part,
    forward_of_part,
    gradient_of_sinks,
)
from flash_attention.distributed.schedule import Reach, Span, blocks, contiguous
from torch import Tensor

from support.tolerances import FLOAT64_ABSOLUTE

LENGTH = 101
# Neither queries nor keys are cut at multiples of a tile or of the words of a random counter.
CUTS = contiguous([37, 0, 1, 50, 13])
NEEDED = (True, True, True, True)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def options_of(seed: Tensor, **changes: Any) -> Options:
    defaults: dict[str, Any] = {
        "causal": False,
        "window": (-1, -1),
        "softcap": 0.0,
        "scale": None,
        "dropout": 0.3,
        "seed": seed,
        "heads": 4,
    }
    return Options(**{**defaults, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"causal": True}, {"window": (20, 7), "softcap": 2.0}, {"dropout": 0.0}],
    ids=["dropout", "causal", "window-softcap", "no-dropout"],
)
def test_parts_sum_to_the_whole(changes: dict[str, Any]) -> None:
    query, key, value = normal(2, 4, LENGTH, 8), normal(2, 2, LENGTH, 8), normal(2, 1, LENGTH, 12)
    slopes, sinks = normal(4).abs() / 10, normal(2, 4)
    grad_out, grad_lse = normal(2, 4, LENGTH, 12), normal(2, 4, LENGTH)
    options = options_of(torch.zeros(1, dtype=torch.int64), **changes)
    given = {
        "causal": options.causal,
        "window": options.window,
        "softcap": options.softcap,
        "dropout": options.dropout,
        "alibi_slopes": slopes,
        "sinks": sinks,
    }
    out, stats, seed = torch.ops.flash._forward(query, key, value, **given)
    options = options_of(seed, **changes)
    gradients = torch.ops.flash._backward(
        grad_out,
        grad_lse,
        query,
        key,
        value,
        out,
        stats,
        seed,
        **{"bias": None, "query_positions": None, "scale": None, **given},
        block_size=64,
        use_simd=True,
        needed=[True, True, True, False, True, True],
    )

    rows = Rows(query, value, sinks)
    pairs = [
        block
        for receiver in range(CUTS.processes)
        for owner in range(CUTS.processes)
        for block in blocks(CUTS, options.reach, receiver, owner)
    ]
    for block in pairs:
        queries, keys = slice(*block.query), slice(*block.key)
        part = (query[:, :, queries], key[:, :, keys], value[:, :, keys], block, options, slopes)
        rows.add(queries, *forward_of_part(*part))
    joined, row_stats = rows.finish()
    close = {"rtol": FLOAT64_ABSOLUTE, "atol": FLOAT64_ABSOLUTE}
    torch.testing.assert_close(joined, out, **close)
    torch.testing.assert_close(
        row_stats[1].log() + row_stats[0], stats[1].log() + stats[0], **close
    )

    saved = Saved(joined, row_stats, grad_out, grad_lse)
    sums = [torch.zeros_like(x) for x in (query, key, value, slopes)]
    for block in pairs:
        queries, keys = slice(*block.query), slice(*block.key)
        found = backward_of_part(
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            block,
            options,
            slopes,
            saved.of(queries),
            NEEDED,
        )
        sums[0][:, :, queries] += found[0]
        sums[1][:, :, keys] += found[1]
        sums[2][:, :, keys] += found[2]
        sums[3] += found[3]
    sums.append(gradient_of_sinks(sinks, saved))
    for actual, expected in zip(sums, gradients[:3] + gradients[4:], strict=True):
        torch.testing.assert_close(actual, expected, **close)


def test_heads_of_a_part_have_their_place_in_the_mask() -> None:
    query = normal(3, 6, 40, 8)
    torch.manual_seed(3)
    out, stats, seed = torch.ops.flash._forward(query, query, query, dropout=0.4)
    part = query[1:, 2:5]
    given = (part, part, part, seed, [1, 2, 0, 0, 6], True)
    found = torch.ops.flash._forward_part(*given, dropout=0.4)
    assert torch.equal(found[0], out[1:, 2:5])
    assert torch.equal(found[1], stats[:, 1:, 2:5])


def test_scores_of_minus_infinity_are_nan_only_in_whole_rows() -> None:
    """Another part may have a finite score. If none has, the joined row is NaN as well."""
    query, key = torch.ones(1, 1, 4, 8), torch.full((1, 1, 4, 8), -torch.inf)
    value, seed = torch.ones(1, 1, 4, 8), torch.zeros(0, dtype=torch.int64)
    place = [0, 0, 0, 0, 1]
    whole = torch.ops.flash._forward_part(query, key, value, seed, place, True)
    assert whole[0].isnan().all()
    part = torch.ops.flash._forward_part(query, key, value, seed, place, False)
    assert (part[0] == 0).all() and (part[1][1] == 0).all()
    rows = Rows(query, value, None)
    rows.add(slice(0, 4), *part)
    rows.add(
        slice(0, 2),
        *torch.ops.flash._forward_part(query[:, :, :2], query, value, seed, place, False),
    )
    out, stats = rows.finish()
    assert (out[:, :, :2] == 1).all() and out[:, :, 2:].isnan().all()
    assert stats[1][:, :, :2].isfinite().all() and stats[1][:, :, 2:].isnan().all()


INVALID = {
    "negative": (
        [0, 0, -1, 0, 2],
        0.5,
        torch.zeros(1, dtype=torch.int64),
        "each in .0, 2147483647., got",
    ),
    "heads": ([0, 1, 0, 0, 2], 0.5, torch.zeros(1, dtype=torch.int64), "heads 1 to 3 of query"),
    "count": ([0, 0, 0], 0.5, torch.zeros(1, dtype=torch.int64), "expected place as"),
    "seed": ([0, 0, 0, 0, 2], 0.5, torch.zeros(2, dtype=torch.int64), "seed as one element"),
    "seed-dtype": ([0, 0, 0, 0, 2], 0.5, torch.zeros(1), "expected seed of dtype int64"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_place_is_refused(name: str) -> None:
    place, dropout, seed, message = INVALID[name]
    x = torch.ones(1, 2, 4, 8)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        torch.ops.flash._forward_part(x, x, x, seed, place, True, dropout=dropout)


@pytest.mark.once
def test_a_span_that_no_query_reaches_is_no_block() -> None:
    assert blocks(contiguous([5, 5]), Reach(0, 0), 0, 1) == []
    assert Reach(3, 1).keys(Span(10, 12), Span(0, 100)) == Span(7, 13)
    assert Reach(3, 1).keys(Span(10, 10), Span(0, 100)).length == 0
