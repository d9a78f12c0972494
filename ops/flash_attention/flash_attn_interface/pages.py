"""Keys and values in blocks, which a table assigns to the sequences.

Source: Kwon et al., Efficient memory management for large language model serving with
PagedAttention (arXiv:2309.06180), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Pages"]


class Pages:
    """The block table of one call."""

    def __init__(
        self, function: str, block_table: Tensor, batch: int, num_blocks: int, page: int
    ) -> None:
        if not isinstance(block_table, Tensor) or block_table.dtype not in (
            torch.int32,
            torch.int64,
        ):
            found = block_table.dtype if isinstance(block_table, Tensor) else repr(block_table)
            raise TypeError(f"{function}: expected block_table to be an int32 tensor, got {found}")
        if block_table.dim() != 2 or block_table.size(0) != batch:
            raise ValueError(
                f"{function}: expected block_table [batch = {batch}, max_blocks], got "
                f"{list(block_table.shape)}"
            )
        if page < 1:
            raise ValueError(f"{function}: expected blocks of one row or more, got {page}")
        self.function, self.num_blocks, self.page = function, num_blocks, page
        self.table = block_table.long()
        self._blocks: list[list[int]] = self.table.tolist()

    @property
    def capacity(self) -> int:
        """The rows that a sequence can have."""
        return self.table.size(1) * self.page

    def check(self, lengths: list[int]) -> None:
        """Raises ValueError unless the blocks of these many rows exist."""
        if max(lengths, default=0) > self.capacity:
            raise ValueError(
                f"{self.function}: expected a block_table for {max(lengths)} rows, got "
                f"{self.table.size(1)} blocks of {self.page}"
            )
        used = torch.tensor([-(-length // self.page) for length in lengths], dtype=torch.long)
        blocks = self.table[torch.arange(self.table.size(1)) < used.unsqueeze(1)]
        wrong = blocks[(blocks < 0) | (blocks >= self.num_blocks)]
        if wrong.numel() > 0:
            raise ValueError(
                f"{self.function}: expected the used entries of block_table from 0 to "
                f"{self.num_blocks - 1}, got {int(wrong[0])}"
            )

    def rows(
        self, cache: Tensor, sequence: int, length: int, buffer: Tensor | None = None
    ) -> Tensor:
        """The first `length` rows of a sequence, [length, heads, width].

        A view if its blocks adjoin in the cache, as they do while few are freed, else a copy, in
        `buffer` if that is given: [blocks, rows of a block, heads, width].
        """
        count = -(-length // self.page)
        blocks = self._blocks[sequence][:count]
        first = blocks[0] if blocks else 0
        if blocks == list(range(first, first + count)):
            own = cache.narrow(0, first, count)
        elif buffer is None:
            own = cache.index_select(0, self.table[sequence, :count])
        else:
            own = torch.index_select(
                cache, 0, self.table[sequence, :count], out=buffer.narrow(0, 0, count)
            )
        return own.flatten(0, 1)[:length]

    def index(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Block, and row in it, of each of `positions`, int64 [batch, n]."""
        return self.table.gather(1, positions // self.page), positions % self.page
