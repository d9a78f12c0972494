"""A cache of sequences of unequal lengths: truncate, append and attention with counts."""

from __future__ import annotations

import pytest
import torch
from flash_attention import KeyValueCache, attention
from torch import Tensor

from support.tolerances import CLOSE

BATCH, HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 3, 4, 2, 8, 6


def rows(positions: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(seed)

    def random(heads: int, width: int) -> Tensor:
        shape = (BATCH, heads, positions, width)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return random(HEADS, WIDTH), random(KEY_HEADS, WIDTH), random(1, VALUE_WIDTH)


def cache_of(lengths: list[int], capacity: int = 32) -> tuple[KeyValueCache, Tensor, Tensor]:
    """A cache, and the key and value of which it holds the first `lengths` positions."""
    cache = KeyValueCache(
        BATCH, KEY_HEADS, capacity, WIDTH,
        value_dim=VALUE_WIDTH, value_heads=1, dtype=torch.float64,
    )  # fmt: skip
    _, key, value = rows(max(lengths), seed=1)
    cache.append(key, value, torch.tensor(lengths))
    return cache, key, value


def assert_attends(
    found: Tensor, query: Tensor, keys: list[Tensor], values: list[Tensor], counts: list[int]
) -> None:
    """Checks `found`: the first counts[b] queries are the last positions of sequence b."""
    for b, count in enumerate(counts):
        expected = attention(
            query[b : b + 1, :, :count], keys[b][None], values[b][None], causal=True
        )
        torch.testing.assert_close(
            found[b : b + 1, :, :count], expected, rtol=0, atol=CLOSE[torch.float64]
        )


@pytest.mark.parametrize("length", [0, 1, 5, 9, 20, 2**62])
@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 2, 5], [0, 9, 9]], ids=str)
def test_truncate_shortens_only_longer_sequences(lengths: list[int], length: int) -> None:
    cache, key, value = cache_of(lengths)
    cache.truncate(length)
    left = [min(n, length) for n in lengths]
    assert cache.lengths.tolist() == left
    assert cache.key.size(2) == max(left) and cache.value.size(2) == max(left)
    query, more, its_value = rows(2, seed=2)
    cache.append(more, its_value)
    assert cache.lengths.tolist() == [n + 2 for n in left]
    keys = [torch.cat([key[b, :, :n], more[b]], 1) for b, n in enumerate(left)]
    values = [torch.cat([value[b, :, :n], its_value[b]], 1) for b, n in enumerate(left)]
    assert_attends(cache.attention(query), query, keys, values, [2] * BATCH)


@pytest.mark.parametrize("counts", [[2, 2, 2], [0, 0, 0], [1, 3, 2], [3, 0, 1]], ids=str)
@pytest.mark.parametrize("lengths", [[9, 9, 9], [4, 9, 7]], ids=str)
def test_counts_select_the_last_queries(lengths: list[int], counts: list[int]) -> None:
    """Also for sequences of equal length: fewer than the three given queries are valid."""
    cache, key, value = cache_of(lengths)
    query, more, its_value = rows(3, seed=3)
    cache.append(more, its_value, torch.tensor(counts))
    assert cache.lengths.tolist() == [n + m for n, m in zip(lengths, counts, strict=True)]
    keys = [torch.cat([key[b, :, :n], more[b, :, : counts[b]]], 1) for b, n in enumerate(lengths)]
    values = [
        torch.cat([value[b, :, :n], its_value[b, :, : counts[b]]], 1) for b, n in enumerate(lengths)
    ]
    found = cache.attention(query, torch.tensor(counts))
    assert_attends(found, query, keys, values, counts)


def test_counts_that_make_all_lengths_equal() -> None:
    """Equal lengths do not mean equal positions of the queries."""
    lengths, counts = [6, 8, 7], [3, 1, 2]
    cache, key, value = cache_of(lengths)
    query, more, its_value = rows(3, seed=4)
    cache.append(more, its_value, torch.tensor(counts))
    assert cache.lengths.tolist() == [9, 9, 9]
    keys = [torch.cat([key[b, :, :n], more[b, :, : counts[b]]], 1) for b, n in enumerate(lengths)]
    values = [
        torch.cat([value[b, :, :n], its_value[b, :, : counts[b]]], 1) for b, n in enumerate(lengths)
    ]
    assert_attends(cache.attention(query, torch.tensor(counts)), query, keys, values, counts)


def test_lengths_are_a_copy() -> None:
    cache, _, _ = cache_of([4, 9, 7])
    cache.lengths.add_(1)
    assert cache.lengths.tolist() == [4, 9, 7]


def test_counts_of_any_layout() -> None:
    """Expanded and strided."""
    expected, _, _ = cache_of([2, 2, 2])
    _, key, value = rows(2, seed=5)
    expected.append(key, value, torch.tensor([1, 1, 1]))
    for counts in (torch.ones(1, dtype=torch.int64).expand(3), torch.ones(3, 4).long()[:, 1]):
        cache, _, _ = cache_of([2, 2, 2])
        cache.append(key, value, counts)
        assert cache.lengths.tolist() == [3, 3, 3] and torch.equal(cache.key, expected.key)
