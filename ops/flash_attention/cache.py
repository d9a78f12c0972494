"""A key-value cache, for models that generate one position after another."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Keys and values of up to `capacity` positions of each sequence of a batch.

    The memory is allocated once and filled in place. In decode, with one or a few queries against
    many keys, the keys are split among the threads. Not thread-safe. Nothing is recorded for
    autograd.

    Args:
        batch: B, the number of sequences.
        key_heads: Hk; a divisor of the number of query heads.
        capacity: the largest length of a sequence.
        head_dim: D, the width of queries and keys.
        value_dim: Dv, the width of values; None means `head_dim`.
        value_heads: Hv, a divisor of the number of query heads; None means `key_heads`.
        dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: heads or a capacity below 1, or another size below 0.
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
        """Append n positions to every sequence.

        Args:
            key: [B, Hk, n, D], of the dtype of the cache.
            value: [B, Hv, n, Dv], of the dtype of the cache.
            counts: int64 [B], in [0, n]: only the first counts[b] positions are appended to
                sequence b. None means all n.

        Raises:
            ValueError: a wrong shape or device, `counts` out of range, or a sequence that would
                exceed the capacity. Nothing is written then.
            TypeError: a wrong dtype.
            NotImplementedError: key or value require a gradient while gradients are recorded, or
                are not dense.
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
        """`flash_attention.attention` of the last positions over the cache; append them first.

        A query attends the positions up to its own.

        Args:
            query: [B, H, L, D], at the last L positions of each sequence; H is a multiple of Hk
                and of Hv.
            counts: int64 [B], in [0, L]: the first counts[b] queries are at the last counts[b]
                positions of sequence b, and the other rows of the result are unspecified. None
                means all L.
            bias: broadcasts to [B, H, L, longest length].
            window, alibi_slopes, softcap, sinks, scale: as in `attention`.

        Returns:
            [B, H, L, Dv].

        Raises:
            TypeError, ValueError, NotImplementedError: as `attention`.
            ValueError: a wrong shape, or more queries than a sequence has positions.
        """
        sides = None if window is None else list(window)
        # All options of the operator, by position, in the order of its schema.
        return self._cache.attention(
            query,
            counts,
            bias,
            True,  # causal
            None,  # query_positions
            sides,
            alibi_slopes,
            softcap,
            sinks,
            scale,
            0.0,  # dropout
            64,  # block_size
            True,  # use_simd
        )

    def truncate(self, length: int) -> None:
        """Drop all but the first `length` positions of every sequence that is longer."""
        self._cache.truncate(length)

    @property
    def lengths(self) -> Tensor:
        """The length of each sequence, int64 [B]; a copy."""
        return self._cache.lengths()

    @property
    def capacity(self) -> int:
        """The largest length of a sequence."""
        return self._cache.capacity()

    @property
    def key(self) -> Tensor:
        """[B, Hk, longest, D], a view; rows past the end of a sequence are unspecified."""
        return self._cache.key()

    @property
    def value(self) -> Tensor:
        """[B, Hv, longest, Dv], a view; rows past the end of a sequence are unspecified."""
        return self._cache.value()
