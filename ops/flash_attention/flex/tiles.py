"""The tiles of a BlockMask: which blocks of keys the queries of a block attend, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

__all__ = ["EMPTY", "FULL", "PARTIAL", "QUERIES", "Part", "Sizes", "Tiles"]

# What a tile is: skipped, masked by mask_mod, or attended as a whole.
EMPTY, PARTIAL, FULL = 0, 1, 2

# The largest block: so many queries, and so many scores of all its heads together. It bounds the
# scratch memory, and the calls of torch's operators that it takes are few beside their work.
QUERIES = 128
KEYS = 512
ELEMENTS = 2**19


@dataclass(frozen=True)
class Sizes:
    """batch, query heads, key heads, queries and keys of a call."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int

    @property
    def lengths(self) -> dict[str, int]:
        """How many indices each axis of a program has."""
        return {"b": self.batch, "h": self.heads, "q": self.queries, "kv": self.keys}


@dataclass(frozen=True)
class Part:
    """Some queries of some heads, and the ranges of keys that they attend.

    A range is (first, end, whether mask_mod applies).
    """

    batch: slice
    heads: slice
    key_heads: slice
    queries: slice
    ranges: list[tuple[int, int, bool]]

    def indices(self) -> tuple[Tensor, Tensor, Tensor]:
        """b, h and q of the queries."""
        slices = (self.batch, self.heads, self.queries)
        b, h, q = (torch.arange(each.start, each.stop) for each in slices)
        return b, h, q


@dataclass(frozen=True)
class Tiles:
    """kinds: int32 [B or 1, H or 1, rows, columns], of tiles of `block` queries and keys."""

    sizes: Sizes
    block: tuple[int, int]
    kinds: Tensor

    @staticmethod
    def whole(sizes: Sizes) -> Tiles:
        """One full tile: no mask."""
        kinds = torch.full((1, 1, 1, 1), FULL, dtype=torch.int32)
        return Tiles(sizes, (sizes.queries, sizes.keys), kinds)

    @staticmethod
    def of(block_mask: BlockMask, sizes: Sizes) -> Tiles:
        """The tiles of `block_mask`.

        Raises:
            TypeError: another object.
            ValueError: a mask for other sizes or on another device, or with blocks out of range or
                listed twice.
        """
        if not isinstance(block_mask, BlockMask):
            raise TypeError(
                "flex_attention: expected block_mask from "
                f"torch.nn.attention.flex_attention.create_block_mask, got {block_mask!r}"
            )
        _check_shape(block_mask, sizes)
        lengths = (sizes.queries, sizes.keys)
        block = tuple(
            min(int(size), length)
            for size, length in zip(block_mask.BLOCK_SIZE, lengths, strict=True)
        )
        rows, columns = (-(-length // size) for length, size in zip(lengths, block, strict=True))
        partial = _listed(block_mask.kv_num_blocks, block_mask.kv_indices, rows, columns)
        full = torch.zeros_like(partial)
        if block_mask.full_kv_num_blocks is not None:
            full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, rows, columns)
        if (partial + full).amax() > 1:
            raise ValueError("flex_attention: expected block_mask to list a block once, got more")
        kinds = partial * PARTIAL + full * FULL
        for dim in (0, 1):  # the fewer differ, the larger are the blocks
            if (kinds == kinds.narrow(dim, 0, 1)).all():
                kinds = kinds.narrow(dim, 0, 1)
        return Tiles(sizes, (block[0], block[1]), kinds)

    def parts(self, keys_at_once: int = KEYS) -> Iterator[Part]:
        """All queries that attend a key, by blocks.

        Each block is so small that it has at most ELEMENTS scores with `keys_at_once` keys, the
        most that one range has, or else is of one query head for each key head that there is.
        """
        sizes = self.sizes
        group = sizes.heads // sizes.key_heads
        for b in range(self.kinds.size(0)):
            batches = slice(0, sizes.batch) if self.kinds.size(0) == 1 else slice(b, b + 1)
            for h in range(self.kinds.size(1)):
                heads = slice(0, sizes.heads) if self.kinds.size(1) == 1 else slice(h, h + 1)
                for row, kinds in enumerate(self.kinds[b, h].tolist()):
                    ranges = self._ranges(kinds, keys_at_once)
                    if not ranges:
                        continue
                    for queries in self._queries(row):
                        for batch, some in _split(batches, heads, group, keys_at_once):
                            key_heads = slice(some.start // group, (some.stop - 1) // group + 1)
                            yield Part(batch, some, key_heads, queries, ranges)

    def _ranges(self, kinds: list[int], keys_at_once: int) -> list[tuple[int, int, bool]]:
        """The keys of a row of tiles: neighbours of one kind together, then cut to size."""
        joined: list[tuple[int, int, int]] = []
        for column, kind in enumerate(kinds):
            first = column * self.block[1]
            end = min(first + self.block[1], self.sizes.keys)
            if joined and joined[-1][1:] == (first, kind):
                joined[-1] = (joined[-1][0], end, kind)
            else:
                joined.append((first, end, kind))
        return [
            (begin, min(begin + keys_at_once, end), kind == PARTIAL)
            for first, end, kind in joined
            if kind != EMPTY
            for begin in range(first, end, keys_at_once)
        ]

    def _queries(self, row: int) -> list[slice]:
        first = row * self.block[0]
        end = min(first + self.block[0], self.sizes.queries)
        return [slice(q, min(q + QUERIES, end)) for q in range(first, end, QUERIES)]


def _split(
    batches: slice, heads: slice, group: int, keys_at_once: int
) -> Iterator[tuple[slice, slice]]:
    """Ranges of batches and heads for blocks of at most ELEMENTS scores, in whole groups."""
    most = max(1, ELEMENTS // (QUERIES * keys_at_once))
    count = heads.stop - heads.start
    head_step = count if count == 1 else min(count, max(1, most // group) * group)
    batch_step = max(1, most // head_step)
    for b in range(batches.start, batches.stop, batch_step):
        for h in range(heads.start, heads.stop, head_step):
            yield (
                slice(b, min(b + batch_step, batches.stop)),
                slice(h, min(h + head_step, heads.stop)),
            )


def _check_shape(block_mask: BlockMask, sizes: Sizes) -> None:
    device = block_mask.kv_num_blocks.device
    if device.type != "cpu":
        raise ValueError(
            f"flex_attention: expected block_mask on the cpu, the device of query, got {device}; "
            'create_block_mask takes device="cpu"'
        )
    shape = tuple(block_mask.kv_num_blocks.shape)
    if len(shape) != 3 or shape[0] not in (1, sizes.batch) or shape[1] not in (1, sizes.heads):
        raise ValueError(
            f"flex_attention: expected block_mask of 1 or {sizes.batch} batches and 1 or "
            f"{sizes.heads} heads, got kv_num_blocks {list(shape)}"
        )
    lengths = (sizes.queries, sizes.keys)
    pairs = zip(block_mask.BLOCK_SIZE, lengths, strict=True)
    whole = all(size >= length for size, length in pairs)
    # torch's mask for no mask has one block larger than any length, and lengths of 1.
    if tuple(block_mask.seq_lengths) not in (lengths, (1, 1) if whole else lengths):
        raise ValueError(
            f"flex_attention: expected block_mask of {lengths[0]} queries and {lengths[1]} keys, "
            f"got one for {block_mask.seq_lengths[0]} and {block_mask.seq_lengths[1]}; create one "
            "for these lengths with create_block_mask, or set the seq_lengths of a slice to them"
        )


def _listed(counts: Tensor, indices: Tensor | None, rows: int, columns: int) -> Tensor:
    """int32 [B or 1, H or 1, rows, columns]: how often each block is listed."""
    assert indices is not None, "BlockMask has both or neither"
    shape, most = counts.shape, indices.size(-1)
    if shape[2] != rows or indices.shape[:-1] != shape:
        raise ValueError(
            f"flex_attention: expected block_mask with {rows} rows of blocks, got counts "
            f"{list(shape)} and indices {list(indices.shape)}"
        )
    used = torch.arange(most) < counts.unsqueeze(-1)
    listed = indices.long()[used]
    outside = bool((counts < 0).any() or (counts > most).any())
    if outside or bool((listed < 0).any() or (listed >= columns).any()):
        raise ValueError(
            f"flex_attention: expected block_mask to list blocks 0 to {columns - 1}, got others"
        )
    places = torch.where(used, indices.long(), columns)
    found = torch.zeros(*shape, columns + 1, dtype=torch.int32)
    found.scatter_add_(-1, places, torch.ones_like(places, dtype=torch.int32))
    return found[..., :columns]
