"""Calls of the kernels that compute what a score_mod and a BlockMask say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flash_attention._packed import packed_attention, packed_rows
from flash_attention.flex.documents import Documents
from flash_attention.flex.masks import EVERYTHING, Mask, MaskReader, both
from flash_attention.flex.program import Program
from flash_attention.flex.scores import Distance, ScoreReader, Scores
from flash_attention.flex.tiles import EMPTY, FULL, Sizes, Tiles

__all__ = ["KernelCall", "kernel_call"]

# The most numbers at once of the comparison of a mask with its tiles.
COMPARED = 2**20


@dataclass(frozen=True)
class KernelCall:
    """Options of `flash_attention.attention`, or with `starts` of `varlen_attention`."""

    options: dict[str, Any]
    starts: Tensor | None = None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """out and, if asked for, the log-sum-exp."""
        if self.starts is not None:
            if with_lse:
                return self._documents_with_lse(query, key, value, self.starts)
            out = packed_attention(query, key, value, self.starts, self.starts, self.options)
            return out.transpose(1, 2), None
        if with_lse:
            out, lse = torch.ops.flash.attention_with_lse(query, key, value, **self.options)
            return out, lse
        return torch.ops.flash.attention(query, key, value, **self.options), None

    def _documents_with_lse(
        self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A call for each document: `varlen_attention` returns no log-sum-exp."""
        batch, length = query.size(0), query.size(2)
        lengths = starts.diff().tolist()
        rows = (packed_rows(x).split(lengths) for x in (query, key, value))
        outs, lses = [], []
        for document in zip(*rows, strict=True):
            call = (x.transpose(0, 1).unsqueeze(0) for x in document)
            out, lse = torch.ops.flash.attention_with_lse(*call, **self.options)
            outs.append(out.squeeze(0))
            lses.append(lse.squeeze(0))
        out, lse = torch.cat(outs, 1), torch.cat(lses, 1)  # [H, B * L, Dv] and [H, B * L]
        out, lse = (x.unflatten(1, (batch, length)).transpose(0, 1) for x in (out, lse))
        return out, lse


def kernel_call(
    tiles: Tiles,
    score: Program | None,
    mask: Program | None,
    scale: float,
    dtype: torch.dtype,
) -> KernelCall | None:
    """The call that computes the same, or None if there is none or this is not certain.

    tiles, score, mask: of the BlockMask, score_mod and mask_mod. The mask_mod has to say the same
    as the tiles do. dtype: of the query.
    """
    sizes = tiles.sizes
    seen = EVERYTHING if mask is None else MaskReader(mask, sizes).read(mask.output)
    if seen is None:
        return None
    documents = None
    if seen.documents is not None:
        documents = Documents.of(seen.documents, sizes)
        if documents is None:
            return None
    if not _agrees(tiles, seen, documents):
        return None
    scores = Scores() if score is None else ScoreReader(score, sizes, dtype).read()
    seen_by_both = None if scores is None else both(seen, scores.mask)
    if scores is None or seen_by_both is None or scores.mask.documents is not None:
        return None
    options = _options(seen_by_both, scores, sizes)
    if options is None:
        return None
    options |= {"scale": scale * scores.factor, "softcap": scores.softcap}
    if documents is None:
        return KernelCall(options)
    by_batch = "alibi_slopes" in options and options["alibi_slopes"].dim() == 2
    if by_batch or "bias" in options or "query_positions" in options:
        return None
    return KernelCall(options, documents.starts)


def _agrees(tiles: Tiles, mask: Mask, documents: Documents | None) -> bool:
    """Whether the mask is True in all of each full tile and False in all of each empty one."""
    sizes, (block_q, block_k) = tiles.sizes, tiles.block
    if mask is EVERYTHING:
        return not bool((tiles.kinds == EMPTY).any())
    begin = torch.arange(0, sizes.keys, block_k)
    end = (begin + block_k).clamp_max(sizes.keys)
    low, high = _bounds(mask, sizes)
    if documents is not None:
        low, high = torch.maximum(low, documents.first), torch.minimum(high, documents.last)
    keys = torch.ones(1, 1, sizes.keys) if mask.keys is None else mask.keys
    before = torch.nn.functional.pad(keys.long().cumsum(-1), (1, 0))  # keys before each
    shape = torch.broadcast_shapes(low.shape[:2], high.shape[:2], keys.shape[:2])
    before = before.expand(*shape, sizes.keys + 1)
    rows = tiles.kinds.size(2)
    step = max(1, COMPARED // (shape.numel() * block_q * begin.numel()))
    for row in range(0, rows, step):
        # The last row of tiles is filled with copies of the last query.
        queries = torch.arange(row * block_q, min(row + step, rows) * block_q)
        queries = queries.clamp_max(sizes.queries - 1)
        first = torch.maximum(low[:, :, queries].unsqueeze(-1), begin)
        past = torch.minimum(high[:, :, queries].unsqueeze(-1) + 1, end)
        first, past = (
            x.expand(*shape, -1, -1).flatten(2).clamp(0, sizes.keys) for x in (first, past)
        )
        counts = (before.gather(2, past) - before.gather(2, first)).clamp_min(0)
        counts = counts.view(*shape, -1, block_q, begin.numel())
        kinds = tiles.kinds[:, :, row : row + step]
        if ((kinds == EMPTY) & (counts > 0).any(3)).any():
            return False
        if ((kinds == FULL) & (counts < end - begin).any(3)).any():
            return False
    return True


def _bounds(mask: Mask, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """low and high of a mask for every query, [B or 1, H or 1, L]."""
    low = torch.tensor(0) if mask.low is None else mask.low
    high = torch.tensor(sizes.keys - 1) if mask.high is None else mask.high
    low, high = (x.expand(1, 1, 1) if x.dim() == 0 else x for x in (low, high))
    low, high = (x.expand(-1, -1, sizes.queries) for x in (low, high))
    return low, high


def _options(mask: Mask, scores: Scores, sizes: Sizes) -> dict[str, Any] | None:
    """The options for mask, distance and bias."""
    low, high = _bounds(mask, sizes)
    options: dict[str, Any] = {}
    positions = None
    if scores.distance is not None:
        slopes = _slopes(scores.distance, low, high, sizes)
        if slopes is None:
            return None
        options["alibi_slopes"] = slopes
        positions = scores.distance.positions.expand(-1, -1, sizes.queries)
    bounded = replace(
        mask,
        low=None if bool((low <= 0).all()) else low,
        high=None if bool((high >= sizes.keys - 1).all()) else high,
    )
    window = _window(bounded, positions, sizes)
    if window is None:
        return None
    bias = scores.bias
    if mask.keys is not None:
        keys = mask.keys.expand(-1, -1, sizes.keys).unsqueeze(2)
        if bias is None:
            bias = keys
        elif bias.size(2) == 1:
            bias = torch.where(keys, bias, -torch.inf)
        else:
            return None
    if bias is not None:
        options["bias"] = bias
    return options | window


def _slopes(distance: Distance, low: Tensor, high: Tensor, sizes: Sizes) -> Tensor | None:
    """alibi_slopes, which multiply -|position - k|."""
    slopes, positions = distance.slopes, distance.positions
    if not distance.signed:
        slopes = -slopes
    elif (low >= positions).all():
        slopes = -slopes
    elif not (high.clamp_max(sizes.keys - 1) <= positions).all():
        return None
    if slopes.size(0) == 1:
        return slopes[0].expand(sizes.heads)
    return slopes.expand(sizes.batch, sizes.heads)


def _window(mask: Mask, positions: Tensor | None, sizes: Sizes) -> dict[str, Any] | None:
    """causal, window and query_positions for the bounds of a mask, with `positions` if given."""
    queries = torch.arange(sizes.queries).expand(1, 1, -1)
    natural = queries + sizes.keys - sizes.queries
    for own in (natural, queries, mask.high, mask.low) if positions is None else (positions,):
        if own is None:
            continue
        left = -1 if mask.low is None else _constant(own - mask.low)
        right = -1 if mask.high is None else _constant(mask.high - own)
        if left is None or right is None:
            continue
        options: dict[str, Any] = {}
        if right == 0:
            options["causal"] = True
        if left >= 0 or right > 0:
            options["window"] = (left, right)
        needed = positions is not None or options
        if needed and not bool((own == natural).all()):
            options["query_positions"] = own
        return options
    return None


def _constant(widths: Tensor) -> int | None:
    """The width that all have, if it is one that a window can have."""
    least, most = (int(each) for each in widths.aminmax())
    return least if least == most and least >= 0 else None
