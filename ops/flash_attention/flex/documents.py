"""Masks of documents, document[q] == document[k], as packed sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attention.flex.tiles import Sizes

__all__ = ["Documents"]


@dataclass(frozen=True)
class Documents:
    """Documents one after the other, the same for all heads and for queries and keys.

    starts: int64 [documents + 1], in the rows of all batches together. first, last: int64 [B or 1,
    1, L], the first and the last key of the document of each query.
    """

    starts: Tensor
    first: Tensor
    last: Tensor

    @staticmethod
    def of(pair: tuple[Tensor, Tensor], sizes: Sizes) -> Documents | None:
        """The documents of a `Mask`, or None if one is in several pieces or they are not shared."""
        rows, keys = pair
        if rows.size(1) > 1 or not torch.equal(rows, keys):
            return None
        rows = rows[:, 0]
        if any(each.unique().numel() != each.unique_consecutive().numel() for each in rows):
            return None
        length, edge = sizes.queries, rows.new_ones(rows.size(0), 1, dtype=torch.bool)
        changes = rows.diff(dim=1) != 0
        is_first, is_last = torch.cat([edge, changes], 1), torch.cat([changes, edge], 1)
        positions = torch.arange(length)
        first = torch.where(is_first, positions, 0).cummax(1).values
        last = torch.where(is_last, positions, length).flip(1).cummin(1).values.flip(1)
        begins = is_first.expand(sizes.batch, length).reshape(-1).nonzero().squeeze(1)
        starts = torch.cat([begins, torch.tensor([sizes.batch * length])])
        return Documents(starts, first.unsqueeze(1), last.unsqueeze(1))
