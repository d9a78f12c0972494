"""Keys and values of the positions so far, for models that produce one position after another."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Room for `capacity` positions of each sequence of a batch, allocated once, filled in place.

    Attention of a few queries over many keys is spread over the threads by cutting the keys. Not
    thread-safe. Nothing is recorded for autograd.

    Args:
        batch: B, the number of sequences.
        key_heads: Hk; a divisor of the heads of the queries.
        capacity: most positions of a sequence.
        head_dim: D, width of queries and keys.
        value_dim: Dv; None means `head_dim`.
        value_heads: Hv; None means `key_heads`.
        dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: a size below 1.
        TypeError: another dtype.

    >>> cache = KeyValueCache(batch=2, key_heads=4, capacity=100, head_dim=16)
    >>> prompt = torch.randn(2, 4, 30, 16)
    >>> cache.append(prompt, prompt)
    >>> cache.attention(torch.randn(2, 8, 30, 16)).shape
    torch.Size([2, 8, 30, 16])
    >>> one = torch.randn(2, 4, 1, 16)
    >>> cache.append(one, one)
    >>> cache.attention(torch.randn(2, 8, 1, 16)).shape
    torch.Size([2, 8, 1, 16])
    >>> cache.lengths
    tensor([31, 31])
    """

    def __init__(
        self,
        batch: int,
        key_heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        value_heads: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._cache = torch.classes.flash.KeyValueCache(
            batch, key_heads, capacity, head_dim, value_dim, value_heads, dtype
        )

    def append(self, key: Tensor, value: Tensor, counts: Tensor | None = None) -> None:
        """Write the next n positions of every sequence.

        Args:
            key: [B, Hk, n, D].
            value: [B, Hv, n, Dv].
            counts: int64 [B]: only the first counts[b] of the positions belong to sequence b. None
                means all.

        Raises:
            ValueError: shapes that do not go together, or a sequence without room; nothing is
                written then.
            TypeError: another dtype than the cache's.
            NotImplementedError: key or value require a gradient while gradients are recorded.
        """
        self._cache.append(key, value, counts)

    def attention(
        self,
        query: Tensor,
        counts: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        window: tuple[int, int] | None = None,
        alibi_slopes: Tensor | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """`attention` of the last positions with all up to each of them: append them first.

        Args:
            query: [B, H, L, D], the last L positions of their sequences.
            counts: as in `append`: the first counts[b] queries are the last positions of sequence
                b, and the rows of the others mean nothing.
            bias: broadcasts to [B, H, L, longest length].
            window, alibi_slopes, softcap, sinks, scale: as in `attention`.

        Returns:
            [B, H, L, Dv].

        Raises:
            ValueError: as `attention`, or more queries than a sequence has positions.
        """
        limits = None if window is None else list(window)
        return self._cache.attention(
            query, counts, bias, limits, alibi_slopes, softcap, sinks, scale
        )

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions of every sequence that has more."""
        self._cache.truncate(length)

    @property
    def lengths(self) -> Tensor:
        """Positions of each sequence, int64 [B]; a copy."""
        return self._cache.lengths()

    @property
    def capacity(self) -> int:
        """Most positions of a sequence."""
        return self._cache.capacity()

    @property
    def key(self) -> Tensor:
        """[B, Hk, longest, D], a view; rows past the length of a sequence hold anything."""
        return self._cache.key()

    @property
    def value(self) -> Tensor:
        """[B, Hv, longest, Dv], likewise."""
        return self._cache.value()
