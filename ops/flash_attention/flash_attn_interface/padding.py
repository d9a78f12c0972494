"""From padded batches to packed sequences and back, as flash-attn's bert_padding does."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["index_first_axis", "index_put_first_axis", "pad_input", "unpad_input"]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices`, int64 [n], of `input` [rows, ..]: [n, ..]; differentiable."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """[first_axis_dim, ..] of zeros, with `values` [n, ..] in rows `indices`; differentiable."""
    result = values.new_zeros(first_axis_dim, *values.shape[1:])
    return result.index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The rows of a padded batch that a mask selects, packed.

    Args:
        hidden_states: [batch, seqlen, ..].
        attention_mask: [batch, seqlen], bool or int: 1 selects a row.
        unused_mask: the same, for rows that are kept but not in use; 0 where `attention_mask` is 1.

    Returns:
        The rows [total, ..]; their indices in the flattened batch, int64 [total]; cu_seqlens, int32
        [batch + 1]; the longest length; and the number of rows in use, int32 [batch].

    Raises:
        ValueError: masks of another shape than that of the batch.
    """
    for name, mask in (("attention_mask", attention_mask), ("unused_mask", unused_mask)):
        if mask is not None and mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"unpad_input: expected {name} {list(hidden_states.shape[:2])}, got "
                f"{list(mask.shape)}"
            )
    selected = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = selected.sum(-1, dtype=torch.int32)
    indices = selected.flatten().nonzero().flatten()
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max()) if lengths.numel() > 0 else 0
    used = attention_mask.sum(-1, dtype=torch.int32)
    rows = index_first_axis(hidden_states.flatten(0, 1), indices)
    return rows, indices, cu_seqlens, longest, used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: [batch, seqlen, ..], with zeros in the rows not selected.

    Args:
        hidden_states: [total, ..].
        indices: int64 [total], the second result of `unpad_input`.
        batch, seqlen: the sizes of the padded batch.
    """
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(
        0, (batch, seqlen)
    )
