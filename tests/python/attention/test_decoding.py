"""Decode: one or a few queries against many keys, which are split over threads; KeyValueCache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flash_attention
import pytest
import torch
from flash_attention import KeyValueCache
from torch import Tensor

from support.checks import check, run
from support.measuring import peak_beyond_result, threads
from support.problems import DTYPES, Spec, dtype_name, make_problem
from support.tolerances import CLOSE

# A split holds 1024 keys; fewer than 2048 keys are not split.
KEYS = (2047, 2048, 2049, 3071, 3072, 5000)
BASE = Spec(2, 4, queries=1, keys=2500, head_dim=8, value_dim=12)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True, "queries": 5},
    "causal-positions": {"causal": True, "positions": "BHL", "queries": 3},
    "window": {"window": (1500, 0), "queries": 4},
    "window-inside-a-split": {"window": (100, 0)},
    "window-right": {"window": (-1, 3), "positions": "L", "queries": 8},
    "alibi": {"alibi": "BH"},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": "BH", "queries": 2},
    "bias-BHLS": {"bias": "BHLS", "queries": 2},
    "bias-S": {"bias": "S"},
    "bias-minus-infinity": {"bias": "1HLS", "excluded_by_bias": True},
    "mask": {"mask": "BHLS", "queries": 3},
    "groups": {"heads": 4, "key_heads": 2, "value_heads": 1},
    "three-dimensional": {"rank": 3, "bias": "BHLS", "causal": True},
    "transposed": {"layout": "transposed"},
    "last-dim-strided": {"layout": "last-dim-strided"},
    "block-1000": {"block_size": 1000},
    "no-simd": {"use_simd": False},
    "wide": {"head_dim": 65, "value_dim": 129},
}


@pytest.mark.parametrize("queries", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_lengths_around_split_boundaries(dtype: torch.dtype, keys: int, queries: int) -> None:
    check(make_problem(replace(BASE, queries=queries, keys=keys, causal=True), dtype))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_option(dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(make_problem(replace(BASE, **options), dtype))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_bitwise_equal_for_any_thread_count(options: dict[str, Any]) -> None:
    problem = make_problem(replace(BASE, **options), torch.float32)
    results = []
    for count in (1, 2, 3, 8):
        with threads(count):
            results.append(run(problem).tensors())
    for other in results[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


def test_batch_matches_single_elements() -> None:
    problem = make_problem(BASE, torch.float32)
    together = flash_attention.attention(**problem.inputs)
    for b in range(BASE.batch):
        alone = flash_attention.attention(*(x[b : b + 1] for x in problem.inputs.values()))
        assert torch.equal(alone, together[b : b + 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fully_masked_rows(dtype: torch.dtype) -> None:
    problem = make_problem(replace(BASE, queries=3, mask="LS"), dtype)
    problem.inputs["bias"][1] = False  # fully masked
    problem.inputs["bias"][2, :2048] = False  # attends only the last split
    check(problem)
    out, lse = flash_attention.attention_with_lse(**problem.inputs)
    assert not out[:, :, 1].any() and (lse[:, :, 1] == -torch.inf).all()


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fully_masked_batch_element_beside_an_unmasked_one(dtype: torch.dtype, masked: int) -> None:
    """Both have a weight sum of 0 if the unmasked one overflows; only that one must give NaN."""
    inputs = make_problem(replace(BASE, mask="B11S"), dtype).inputs
    inputs["bias"][masked] = False
    for overflows in (False, True):
        if overflows:
            inputs["query"][1 - masked] = torch.finfo(dtype).max
            inputs["key"][1 - masked] = -torch.finfo(dtype).max
        out, lse = flash_attention.attention_with_lse(**inputs)
        assert not out[masked].any() and (lse[masked] == -torch.inf).all()
        for other in (out[1 - masked], lse[1 - masked]):
            assert (other.isnan() if overflows else other.isfinite()).all()


@pytest.mark.parametrize("non_finite", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_non_finite_values_propagate_as_in_the_definition(
    dtype: torch.dtype, name: str, non_finite: float
) -> None:
    inputs = make_problem(replace(BASE, queries=2), dtype).inputs
    inputs[name][0, 1, 1, 2] = non_finite
    wide = {n: x.double() for n, x in inputs.items()}
    weights = torch.softmax(wide["query"] @ wide["key"].mT / 8**0.5, -1)
    out = flash_attention.attention(**inputs)
    expected = weights @ wide["value"]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=CLOSE[dtype], equal_nan=True)


def test_masked_keys_have_no_effect() -> None:
    inputs = make_problem(replace(BASE, mask="S"), torch.float32).inputs
    inputs["bias"][1000:2200] = False
    expected = flash_attention.attention(**inputs)
    for name in ("key", "value"):
        inputs[name][:, :, 1000:2200] = torch.nan
    torch.testing.assert_close(
        flash_attention.attention(**inputs), expected, rtol=0, atol=CLOSE[torch.float32]
    )


def test_split_whose_scores_all_overflow_has_zero_weight() -> None:
    """Those scores are -inf with weight 0 beside the others; a split by itself would give NaN."""
    query = torch.full((1, 1, 1, 1), 1e30)
    key = torch.zeros(1, 1, 2048, 1)
    key[:, :, :1024] = -1e30
    value = torch.randn(1, 1, 2048, 3)
    out = flash_attention.attention(query, key, value)
    expected = value[:, :, 1024:].mean(2, keepdim=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=CLOSE[torch.float32])


@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize("keys", [2048, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_predicted_memory_is_exact(dtype: torch.dtype, keys: int, queries: int) -> None:
    inputs = make_problem(replace(BASE, queries=queries, keys=keys), dtype).inputs
    with torch.no_grad():
        measured = peak_beyond_result(lambda: flash_attention.attention(**inputs))
    usage = flash_attention.attention_memory(2, 4, queries, keys, 8, 12, dtype)
    assert measured == usage.forward


# --- KeyValueCache ------------------------------------------------------------------------------

HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6


def rows(batch: int, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, HEADS, positions, WIDTH, dtype=torch.float64),
        torch.randn(batch, KEY_HEADS, positions, WIDTH, dtype=torch.float64),
        torch.randn(batch, 1, positions, VALUE_WIDTH, dtype=torch.float64),
    )


def cache_of(batch: int, capacity: int) -> KeyValueCache:
    return KeyValueCache(
        batch,
        KEY_HEADS,
        capacity,
        WIDTH,
        value_dim=VALUE_WIDTH,
        value_heads=1,
        dtype=torch.float64,
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE[torch.float64])


@pytest.mark.parametrize(
    "options",
    [{}, {"window": (7, 0)}, {"softcap": 2.0, "scale": 0.3}],
    ids=["plain", "window", "softcap"],
)
def test_incremental_decoding_matches_one_causal_call(options: dict[str, Any]) -> None:
    query, key, value = rows(3, 40)
    expected = flash_attention.attention(query, key, value, causal=True, **options)
    cache = cache_of(3, 40)
    done = 0
    for count in (17, 1, 1, 5, 1, 8, 7):
        now = slice(done, done + count)
        cache.append(key[:, :, now], value[:, :, now])
        assert_close(cache.attention(query[:, :, now], **options), expected[:, :, now])
        done += count
    assert cache.lengths.tolist() == [40, 40, 40] and cache.capacity == 40
    assert torch.equal(cache.key, key) and torch.equal(cache.value, value)


def test_sequences_of_unequal_lengths() -> None:
    query, key, value = rows(3, 20)
    cache = cache_of(3, 64)
    counts = torch.tensor([20, 3, 11])
    cache.append(key, value, counts)
    found = cache.attention(query, counts)
    more = rows(3, 4)
    cache.append(more[1], more[2])
    later = cache.attention(more[0])
    assert cache.lengths.tolist() == [24, 7, 15]
    for b, count in enumerate(counts.tolist()):
        keys = torch.cat([key[b : b + 1, :, :count], more[1][b : b + 1]], 2)
        values = torch.cat([value[b : b + 1, :, :count], more[2][b : b + 1]], 2)
        queries = torch.cat([query[b : b + 1, :, :count], more[0][b : b + 1]], 2)
        expected = flash_attention.attention(queries, keys, values, causal=True)
        assert_close(found[b : b + 1, :, :count], expected[:, :, :count])
        assert_close(later[b : b + 1], expected[:, :, count:])


def test_cache_appends_in_place() -> None:
    _, key, value = rows(1, 5)
    cache = cache_of(1, 10)
    cache.append(key, value)
    address = cache.key.data_ptr()
    cache.append(key, value)
    assert cache.key.data_ptr() == address
    cache.truncate(7)
    assert cache.lengths.tolist() == [7]
    cache.append(key[:, :, :1], value[:, :, :1])
    assert torch.equal(cache.key[:, :, 7:], key[:, :, :1])


def test_long_cache_is_decoded_in_splits() -> None:
    query, key, value = rows(2, 3000)
    cache = cache_of(2, 3001)
    cache.append(key, value)
    one = rows(2, 1)
    cache.append(one[1], one[2])
    expected = flash_attention.standard_attention(
        one[0], torch.cat([key, one[1]], 2), torch.cat([value, one[2]], 2)
    )
    assert_close(cache.attention(one[0]), expected)


def test_cache_errors_leave_the_cache_unchanged() -> None:
    query, key, value = rows(2, 8)
    cache = cache_of(2, 10)
    cache.append(key, value)
    with pytest.raises(ValueError, match="at most 10 positions of a sequence, got 16"):
        cache.append(key, value)
    with pytest.raises(ValueError, match=r"key \[2, 2, positions, 8\], got \[2, 2, 8, 6\]"):
        cache.append(key[..., :6], value)
    with pytest.raises(ValueError, match="one number of positions, got 8 and 7"):
        cache.append(key, value[:, :, :7])
    with pytest.raises(TypeError, match="dtype Double as the cache, got Float"):
        cache.append(key.float(), value)
    with pytest.raises(ValueError, match="counts from 0 to the 8 positions that come, got 1 to 9"):
        cache.append(key, value, torch.tensor([1, 9]))
    with pytest.raises(TypeError, match="counts of dtype int64, got Float"):
        cache.append(key, value, torch.ones(2))
    with pytest.raises(ValueError, match="queries of positions in the cache, got 9"):
        cache.attention(torch.cat([query, query[:, :, :1]], 2))
    with pytest.raises(NotImplementedError, match=r"without a gradient.*no_grad"):
        cache.append(key.requires_grad_(), value)
    with pytest.raises(ValueError, match="length of at least 0, got -1"):
        cache.truncate(-1)
    assert cache.lengths.tolist() == [8, 8]
    for arguments in ((0, 0, 10, 8), (1, 1, 0, 8)):
        with pytest.raises(ValueError, match="expected sizes above 0"):
            KeyValueCache(*arguments)
    with pytest.raises(TypeError, match="bfloat16 or float16, got Int"):
        KeyValueCache(1, 1, 1, 1, dtype=torch.int32)
