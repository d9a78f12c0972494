"""Batches of sequences that follow one another in their rows, as packed sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["packed_attention", "packed_rows"]


def packed_rows(batch: Tensor) -> Tensor:
    """[B, H, L, D] as the rows [B * L, H, D] of packed sequences; copies unless H is inside L."""
    return batch.transpose(1, 2).flatten(0, 1)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """`varlen_attention` of [B, H, L, D], [B, Hk, S, D] and [B, Hv, S, Dv] as [B, L, H, Dv].

    The offsets count the B * L queries and the B * S keys; errors are those of `varlen_attention`.
    """
    rows = [packed_rows(x) for x in (query, key, value)]
    out = torch.ops.flash.varlen_attention(*rows, cu_seqlens_q, cu_seqlens_k, **options)
    return out.unflatten(0, (query.size(0), query.size(2)))
