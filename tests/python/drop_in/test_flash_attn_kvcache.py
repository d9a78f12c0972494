"""flash_attn_with_kvcache against its definition, in every arrangement of the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from flash_attention.flash_attn_interface import flash_attn_with_kvcache
from torch import Tensor

from support.flash_attn_reference import attend, rotate
from support.problems import DTYPES, dtype_name
from support.tolerances import CLOSE

# The kernels' instruction sets are tested with the operator.
pytestmark = pytest.mark.once

BATCH, SLOTS, ROWS, HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 3, 5, 24, 4, 2, 12, 7
LENGTHS, QUERIES = (11, 0, 20), 4
PAGE = 5

MASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (3, 1)},
    "causal window": {"causal": True, "window_size": (6, -1), "softcap": 2.0},
    "alibi": {"alibi_slopes": torch.linspace(0.1, 1, HEADS), "softmax_scale": 0.5},
    "causal alibi": {
        "causal": True,
        "alibi_slopes": torch.linspace(0.1, 1, BATCH * HEADS).view(BATCH, HEADS),
    },
}
LAYOUTS = ["rows", "slots", "leftpad", "slots and leftpad", "blocks", "blocks and leftpad"]
NEW = ["none", "as many", "fewer", "rotated pairs", "rotated halves", "rotated whole"]


@dataclass
class Cache:
    """The keys and values of the sequences of a call, and where they are in its caches."""

    key: Tensor  # [BATCH, ROWS, ..]: the rows of each sequence
    value: Tensor
    stored: list[Tensor]  # the caches
    arguments: dict[str, Any]
    leftpad: list[int]

    def read(self) -> list[Tensor]:
        """The rows of each sequence as they are now in the caches."""
        slots, table = (self.arguments.get(n) for n in ("cache_batch_idx", "block_table"))
        if table is not None:
            return [cache[table.long()].flatten(1, 2)[:, :ROWS] for cache in self.stored]
        return [cache[:BATCH] if slots is None else cache[slots.long()] for cache in self.stored]


def cache_of(layout: str, dtype: torch.dtype) -> Cache:
    key = torch.randn(BATCH, ROWS, KEY_HEADS, WIDTH, dtype=torch.float64).to(dtype)
    value = torch.randn(BATCH, ROWS, KEY_HEADS, VALUE_WIDTH, dtype=torch.float64).to(dtype)
    arguments: dict[str, Any] = {}
    if "blocks" in layout:
        blocks = -(-ROWS // PAGE)
        # The first sequence has blocks that adjoin, the others have not.
        order = torch.randperm(BATCH * blocks + 2 - blocks) + blocks
        table = torch.cat([torch.arange(blocks), order])[: BATCH * blocks].view(BATCH, blocks)
        arguments["block_table"] = table.int()
        stored = []
        for rows in (key, value):
            pool = rows.new_zeros(BATCH * blocks + 2, PAGE, *rows.shape[2:])
            padded = torch.cat(
                [rows, rows.new_zeros(BATCH, blocks * PAGE - ROWS, *rows.shape[2:])], 1
            )
            pool[table] = padded.unflatten(1, (blocks, PAGE))
            stored.append(pool)
    else:
        slots = torch.tensor([3, 0, 4] if "slots" in layout else [0, 1, 2])
        if "slots" in layout:
            arguments["cache_batch_idx"] = slots.int()
        stored = []
        for rows in (key, value):
            # Heads before rows in memory: the caches may have any strides.
            pool = rows.new_zeros(SLOTS, rows.size(2), ROWS, rows.size(3)).transpose(1, 2)
            pool[slots] = rows
            stored.append(pool)
    leftpad = [0] * BATCH
    if "leftpad" in layout:
        leftpad = [3, 0, 12]
        arguments["cache_leftpad"] = torch.tensor(leftpad, dtype=torch.int32)
    return Cache(key, value, stored, arguments, leftpad)


def new_rows(new: str, dtype: torch.dtype) -> tuple[dict[str, Any], int]:
    """k, v and the rotary arguments, and the number of new rows."""
    if new == "none":
        return {}, 0
    count = 2 if new == "fewer" else QUERIES
    arguments: dict[str, Any] = {
        "k": torch.randn(BATCH, count, KEY_HEADS, WIDTH, dtype=torch.float64).to(dtype),
        "v": torch.randn(BATCH, count, KEY_HEADS, VALUE_WIDTH, dtype=torch.float64).to(dtype),
    }
    if "rotated" in new:
        angle = torch.rand(ROWS, WIDTH // 2 if "whole" in new else 4, dtype=torch.float64) * 6
        arguments["rotary_cos"], arguments["rotary_sin"] = (
            angle.cos().to(dtype),
            angle.sin().to(dtype),
        )
        arguments["rotary_interleaved"] = "pairs" in new
    return arguments, count


def expected(
    q: Tensor, cache: Cache, lengths: tuple[int, ...], added: dict[str, Any], mask: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, softmax_lse, and the keys and values that each sequence has afterwards."""
    outs, lses, keys, values = [], [], cache.key.double(), cache.value.double()
    for n, length in enumerate(lengths):
        own_q, end = q[n], length
        if "k" in added:
            k, end = added["k"][n], length + added["k"].size(1)
            if "rotary_cos" in added:
                table = added["rotary_cos"], added["rotary_sin"]
                pairs = added["rotary_interleaved"]
                k = rotate(k, *table, torch.arange(length, end), pairs)
                ordered = mask.get("causal") or "window_size" in mask
                at = length + torch.arange(QUERIES) * (1 if ordered else 0)
                own_q = rotate(own_q, *table, at, pairs)
            keys[n, length:end], values[n, length:end] = k, added["v"][n]
        own, slopes = mask, mask.get("alibi_slopes")
        if slopes is not None:
            own = mask | {"alibi_slopes": slopes[n] if slopes.dim() > 1 else slopes}
        rows = slice(cache.leftpad[n], end)
        out, lse = attend(own_q, keys[n, rows], values[n, rows], **own)
        outs.append(out)
        lses.append(lse)
    return torch.stack(outs), torch.stack(lses), keys, values


def check(layout: str, new: str, mask: dict[str, Any], dtype: torch.dtype, same: bool) -> None:
    cache = cache_of(layout, dtype)
    lengths = (14,) * BATCH if same else LENGTHS
    q = torch.randn(BATCH, QUERIES, HEADS, WIDTH, dtype=torch.float64).to(dtype)
    added, _ = new_rows(new, dtype)
    wanted = expected(q, cache, lengths, added, mask)
    seqlens = torch.tensor(lengths, dtype=torch.int32)
    out, lse = flash_attn_with_kvcache(
        q, *cache.stored, **added, **mask, **cache.arguments,
        cache_seqlens=seqlens, return_softmax_lse=True,
    )  # fmt: skip
    assert torch.equal(seqlens, torch.tensor(lengths, dtype=torch.int32))
    assert out.is_contiguous() and out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # In 16 bits, the rotation of q and k is rounded, and scores of some tens multiply it.
    close = CLOSE[dtype] * (4 if "rotated" in new else 1)
    torch.testing.assert_close(out.double(), wanted[0], rtol=0, atol=close)
    torch.testing.assert_close(lse.double(), wanted[1], rtol=0, atol=4 * close)
    for rows, other in zip(cache.read(), wanted[2:], strict=True):
        torch.testing.assert_close(rows.double(), other, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_every_arrangement_matches_the_definition(
    mask: dict[str, Any], layout: str, new: str
) -> None:
    check(layout, new, mask, torch.float64, same=False)


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_equal_lengths_match_the_definition(mask: dict[str, Any], new: str) -> None:
    """They are one call of the operator."""
    check("rows", new, mask, torch.float64, same=True)


@pytest.mark.parametrize("same", [False, True], ids=["ragged", "equal"])
@pytest.mark.parametrize("new", ["none", "rotated pairs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_dtype(dtype: torch.dtype, new: str, same: bool) -> None:
    check("rows", new, MASKS["causal window"], dtype, same)


def test_lengths_as_a_number_as_none_and_in_64_bits() -> None:
    cache = cache_of("rows", torch.float64)
    q = torch.randn(BATCH, QUERIES, HEADS, WIDTH, dtype=torch.float64)
    for given, lengths in (
        (7, (7,) * BATCH),
        (None, (ROWS,) * BATCH),
        (torch.tensor(LENGTHS), LENGTHS),
    ):
        out = flash_attn_with_kvcache(q, *cache.stored, cache_seqlens=given, causal=True)
        wanted = expected(q, cache, lengths, {}, {"causal": True})[0]
        torch.testing.assert_close(out, wanted, rtol=0, atol=CLOSE[torch.float64])


def test_one_query_of_each_sequence() -> None:
    """It is one call, too, whatever the mask: all keys are before the query."""
    q = torch.randn(BATCH, 1, HEADS, WIDTH, dtype=torch.float64)
    cache = cache_of("rows", torch.float64)
    seqlens = torch.tensor(LENGTHS, dtype=torch.int32)
    for mask in MASKS.values():
        out = flash_attn_with_kvcache(q, *cache.stored, cache_seqlens=seqlens, **mask)
        wanted = expected(q, cache, LENGTHS, {}, mask)[0]
        torch.testing.assert_close(out, wanted, rtol=0, atol=CLOSE[torch.float64])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_sequence(layout: str) -> None:
    cache = cache_of(layout, torch.float64)
    none = {name: given[:0] for name, given in cache.arguments.items()}
    q = torch.zeros(0, QUERIES, HEADS, WIDTH, dtype=torch.float64)
    out, lse = flash_attn_with_kvcache(q, *cache.stored, **none, return_softmax_lse=True)
    assert out.shape == (0, QUERIES, HEADS, VALUE_WIDTH) and lse.shape == (0, HEADS, QUERIES)


def test_rows_past_the_end_and_before_the_leftpad_are_not_read() -> None:
    q = torch.randn(BATCH, QUERIES, HEADS, WIDTH, dtype=torch.float64)
    cache = cache_of("leftpad", torch.float64)
    cache.stored = [rows.contiguous() for rows in cache.stored]
    for stored in cache.stored:
        for n, (first, length) in enumerate(zip(cache.leftpad, LENGTHS, strict=True)):
            stored[n, :first] = stored[n, length:] = math.nan
    seqlens = torch.tensor(LENGTHS, dtype=torch.int32)
    out = flash_attn_with_kvcache(q, *cache.stored, cache_seqlens=seqlens, **cache.arguments)
    assert out.isfinite().all()
    assert not out[1].any()  # a sequence without keys


def test_generation_step_by_step_matches_one_causal_call() -> None:
    length = 9
    caches = [torch.zeros(2, length, KEY_HEADS, WIDTH, dtype=torch.float64) for _ in range(2)]
    q = torch.randn(2, length, HEADS, WIDTH, dtype=torch.float64)
    k, v = (torch.randn(2, length, KEY_HEADS, WIDTH, dtype=torch.float64) for _ in range(2))
    steps = []
    for n in range(length):
        step = slice(n, n + 1)
        steps.append(
            flash_attn_with_kvcache(q[:, step], *caches, k[:, step], v[:, step], cache_seqlens=n)
        )
    whole = torch.stack([attend(*rows, causal=True)[0] for rows in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=CLOSE[torch.float64])
    assert torch.equal(caches[0], k) and torch.equal(caches[1], v)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


ROW = zeros(2, 3, 2, 8)
POOL = {"k_cache": zeros(4, 5, 2, 8), "v_cache": zeros(4, 5, 2, 8)}
COS = zeros(10, 4)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"q": zeros(3, 4, 8)}, ValueError, r"q \[batch, seqlen_q, nheads, headdim\], got"),
        ({"k_cache": zeros(2, 10, 2, 6)}, ValueError, r"k_cache \[.*headdim = 8\], got"),
        ({"v_cache": zeros(2, 9, 2, 8)}, ValueError, r"v_cache \[.*seqlen_cache = 10.*got"),
        ({"k_cache": zeros(2, 10, 3, 8), "v_cache": zeros(2, 10, 3, 8)}, ValueError, "multiple"),
        (
            {"k_cache": zeros(1, 10, 2, 8), "v_cache": zeros(1, 10, 2, 8)},
            ValueError,
            "k_cache of 2",
        ),
        ({"v_cache": zeros(2, 10, 2, 8).double()}, TypeError, "v_cache of torch.float32"),
        ({"k": ROW}, ValueError, "k and v, or neither, got k alone"),
        ({"v": ROW}, ValueError, "k and v, or neither, got v alone"),
        ({"k": ROW, "v": zeros(2, 2, 2, 8)}, ValueError, r"v \[.*seqlen_new = 3.*got"),
        ({"k": ROW, "v": ROW.double()}, TypeError, "v of torch.float32"),
        ({"k": ROW, "v": ROW, "cache_seqlens": None}, ValueError, "cache_seqlens with k"),
        ({"k": ROW, "v": ROW, "cache_seqlens": 8}, ValueError, "cache_seqlens.*7.*got 8"),
        ({"k": ROW, "v": ROW, "cache_seqlens": int32(2, 8)}, ValueError, "cache_seqlens.*got 8"),
        ({"cache_seqlens": -1}, ValueError, "cache_seqlens.*got -1"),
        ({"cache_seqlens": int32(1, 11)}, ValueError, "cache_seqlens.*to 10.*got 11"),
        ({"cache_seqlens": int32(1)}, ValueError, r"cache_seqlens \[2\], got \[1\]"),
        ({"cache_seqlens": torch.tensor([1.0, 2.0])}, TypeError, "cache_seqlens.*int32"),
        (
            {"cache_batch_idx": int32(0, 2)},
            ValueError,
            r"cache_batch_idx from 0 to 1, got \[0, 2\]",
        ),
        ({"cache_batch_idx": int32(-1, 0)}, ValueError, "cache_batch_idx from 0 to 1"),
        ({"cache_leftpad": int32(5, 0)}, ValueError, "cache_leftpad = 5.*got 4"),
        ({"cache_leftpad": int32(-1, 0)}, ValueError, "cache_leftpad = -1"),
        ({"rotary_cos": COS}, ValueError, "rotary_cos and rotary_sin with k"),
        ({"rotary_cos": COS, "rotary_sin": COS}, ValueError, "rotary_cos and rotary_sin with k"),
        ({"alibi_slopes": zeros(3, 4)}, ValueError, r"alibi_slopes \[batch = 2, nheads = 4\]"),
        ({"softcap": math.nan}, ValueError, "softcap"),
        ({"q": zeros(2, 3, 4, 8).requires_grad_()}, NotImplementedError, "torch.no_grad"),
        ({"q": zeros(2, 3, 4, 8).to("meta")}, NotImplementedError, "CPU, got"),
        (POOL | {"block_table": int32(0, 1)}, ValueError, r"block_table \[batch = 2"),
        (POOL | {"block_table": int32(0, 4).view(2, 1)}, ValueError, "from 0 to 3, got 4"),
        (
            POOL | {"block_table": int32(0, 1).view(2, 1), "cache_batch_idx": int32(0, 1)},
            ValueError,
            "cache_batch_idx or block_table",
        ),
        (POOL | {"block_table": int32(0, 1).view(2, 1), "cache_seqlens": 6}, ValueError, "to 5"),
    ],
)
def test_invalid_arguments_are_refused_and_write_nothing(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {
        "q": zeros(2, 3, 4, 8),
        "k_cache": zeros(2, 10, 2, 8),
        "v_cache": zeros(2, 10, 2, 8),
        "cache_seqlens": 4,
    }
    flash_attn_with_kvcache(**arguments)
    given = arguments | changes
    if "k" not in changes and "v" not in changes and "rotary_cos" not in changes:
        given |= {"k": torch.ones(2, 0, 2, 8), "v": torch.ones(2, 0, 2, 8)}
    before = [given[name].clone() for name in ("k_cache", "v_cache")]
    with pytest.raises(error, match=text):
        flash_attn_with_kvcache(**given)
    assert torch.equal(given["k_cache"], before[0]) and torch.equal(given["v_cache"], before[1])


@pytest.mark.parametrize(
    ("cos", "sin", "error", "text"),
    [
        (COS, zeros(10, 3), ValueError, r"rotary_sin \[.*rotary_dim / 2 = 4\], got \[10, 3\]"),
        (zeros(10, 5), zeros(10, 5), ValueError, "headdim = 8 elements, got rotary_dim = 10"),
        (zeros(6, 4), zeros(6, 4), ValueError, "positions 4 to 6, got 6 rows"),
        (COS.long(), COS.long(), TypeError, "floating rotary_cos, got torch.int64"),
    ],
)
def test_invalid_rotary_tables_are_refused_and_write_nothing(
    cos: Tensor, sin: Tensor, error: type[Exception], text: str
) -> None:
    caches = [zeros(2, 10, 2, 8), zeros(2, 10, 2, 8)]
    one = torch.ones(2, 3, 2, 8)
    with pytest.raises(error, match=text):
        flash_attn_with_kvcache(zeros(2, 3, 4, 8), *caches, one, one, cos, sin, cache_seqlens=4)
    assert not caches[0].any() and not caches[1].any()
