"""Attention by blocks of scores, for any score_mod and mask_mod, forward and backward.

A block of scores exists while it is used. The forward keeps the log-sum-exp of each row, and the
backward computes the blocks anew.

Source: Dao, FlashAttention-2 (arXiv:2307.08691), section 3.1, algorithms 1 and 2, with the scores
of Dong et al., Flex Attention (arXiv:2412.05496).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attention.flash_attn_interface.arguments import compute_dtype
from flash_attention.flex.block_mods import BlockMod, Indices, Places
from flash_attention.flex.program import AXES
from flash_attention.flex.tiles import Tiles

__all__ = ["BlockCall", "Gradients", "product", "run_backward", "run_forward", "weighted_sum"]

Gradients = list[Tensor | None]


def product(query: Tensor, key: Tensor) -> Tensor:
    """query key^T, [b, h, q, kv], of h query heads in groups that share a key head."""
    batch, heads, queries, _ = query.shape
    grouped = query.reshape(batch, key.size(1), heads // key.size(1) * queries, query.size(3))
    return (grouped @ key.mT).reshape(batch, heads, queries, key.size(2))


def weighted_sum(weights: Tensor, value: Tensor) -> Tensor:
    """weights [b, h, q, kv] times value, [b, h, q, Dv]."""
    batch, heads, queries, keys = weights.shape
    grouped = weights.reshape(batch, value.size(1), heads // value.size(1) * queries, keys)
    return (grouped @ value).reshape(batch, heads, queries, value.size(3))


def transposed_sum(weights: Tensor, rows: Tensor, key_heads: int) -> Tensor:
    """weights^T rows, summed over the heads that share a key head: [b, key_heads, kv, width]."""
    batch, heads, queries, keys = weights.shape
    stacked = heads // key_heads * queries
    grouped = weights.reshape(batch, key_heads, stacked, keys)
    return grouped.mT @ rows.reshape(batch, key_heads, stacked, rows.size(3))


@dataclass(frozen=True)
class BlockCall:
    """What a call says besides its tensors.

    Those are query, key, value and then the inputs of `score` and those of `mask`.
    """

    tiles: Tiles
    scale: float
    score: BlockMod | None
    mask: BlockMod | None

    @property
    def inputs(self) -> list[Tensor]:
        return [x for mod in (self.score, self.mask) if mod is not None for x in mod.inputs]

    def for_score(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inputs of `score` among all."""
        return inputs[: 0 if self.score is None else len(self.score.inputs)]

    def scores(
        self, raw: Tensor, indices: Indices, inputs: Sequence[Tensor], gathered: Sequence[Tensor]
    ) -> Tensor:
        """What score_mod makes of `raw`."""
        if self.score is None:
            return raw
        return self.score(raw, indices, self.for_score(inputs), gathered).to(raw.dtype)

    def places(self, raw: Tensor, indices: Indices, inputs: Sequence[Tensor]) -> Places:
        """Where score_mod reads elements of inputs with a gradient."""
        if self.score is None or not self.score.gathers:
            return []
        with torch.no_grad():
            return self.score.places(raw, indices, self.for_score(inputs))

    def gathered(self, places: Places, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The elements there."""
        if self.score is None:
            return []
        return self.score.gathered(places, self.for_score(inputs))

    def attends(self, indices: Indices, inputs: Sequence[Tensor]) -> Tensor | None:
        """Where mask_mod is True, [b or 1, h or 1, q or 1, kv or 1]; None is everywhere."""
        if self.mask is None:
            return None
        own = inputs[len(self.for_score(inputs)) :]
        axes = self.mask.program.output.axes
        with torch.no_grad():
            found = self.mask(None, indices, own, [])
        return found[tuple(slice(None if axis in axes else 1) for axis in AXES)]


def _zeros_like(query: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """[B, H, L, width], with B, H and L in the order that they have in the memory of query.

    So merging the heads of the result is a view where splitting those of query was one.
    """
    order = sorted(range(3), key=query.stride, reverse=True)
    zeros = query.new_zeros(*(query.size(dim) for dim in order), width, dtype=dtype)
    return zeros.permute(*(order.index(dim) for dim in range(3)), 3)


@torch.no_grad()
def run_forward(
    call: BlockCall, query: Tensor, key: Tensor, value: Tensor, inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """out and log-sum-exp, in the dtype that they are computed in."""
    dtype = compute_dtype(query.dtype)
    out = _zeros_like(query, value.size(3), dtype)
    lse = query.new_full(query.shape[:3], -math.inf, dtype=dtype)
    for part in call.tiles.parts():
        rows = (part.batch, part.heads, part.queries)
        own = query[rows].to(dtype) * call.scale
        peak = torch.full(own.shape[:3], -math.inf, dtype=dtype)
        base, total, summed = peak, torch.zeros_like(peak), torch.zeros_like(out[rows])
        for first, end, masked in part.ranges:
            keys = (part.batch, part.key_heads, slice(first, end))
            indices = (*part.indices(), torch.arange(first, end))
            raw = product(own, key[keys].to(dtype))
            gathered = call.gathered(call.places(raw, indices, inputs), inputs)
            scores = call.scores(raw, indices, inputs, gathered)
            attends = call.attends(indices, inputs) if masked else None
            if attends is not None:
                scores = scores.masked_fill(~attends, -math.inf)
            peak = torch.maximum(peak, scores.amax(-1))
            # Differences are from 0 without a key so far, where the weights are 0, and after an
            # infinite score, where they are infinite.
            shift = peak.masked_fill(peak.isinf(), 0.0)
            weights = (scores - shift.unsqueeze(-1)).exp_()
            carried = (base - shift).exp_()
            total = total * carried + weights.sum(-1)
            added = weighted_sum(weights, value[keys].to(dtype))
            summed = summed * carried.unsqueeze(-1) + added
            base = peak
        lse[rows] = peak.masked_fill(peak.isinf(), 0.0) + total.log()
        out[rows] = summed / total.masked_fill(total == 0, 1.0).unsqueeze(-1)
    return out, lse


class _Totals:
    """The sums of the gradients of all blocks, in the dtype that they are computed in."""

    def __init__(
        self, call: BlockCall, query: Tensor, key: Tensor, value: Tensor, inputs: Sequence[Tensor]
    ) -> None:
        self.main = [
            torch.zeros(x.shape, dtype=compute_dtype(x.dtype)) for x in (query, key, value)
        ]
        self._dtypes = [x.dtype for x in (query, key, value, *inputs)]
        self.call = call
        self.inputs: Gradients = [
            torch.zeros(x.shape, dtype=compute_dtype(x.dtype)) if own.requires_grad else None
            for x, own in zip(inputs, call.inputs, strict=True)
        ]

    def add_inputs(
        self, places: Places, elements: Sequence[Tensor | None], whole: Sequence[Tensor | None]
    ) -> None:
        """Adds the gradients of the elements gathered, and of inputs as a whole."""
        gathers = [] if self.call.score is None else self.call.score.gathers
        for gather, where, gradient in zip(gathers, places, elements, strict=True):
            total = self.inputs[gather.table]
            if gradient is not None and total is not None:
                gather.add(total, where, gradient)
        for total, gradient in zip(self.inputs, whole, strict=False):
            if gradient is not None and total is not None:
                total += gradient

    def rounded(self) -> Gradients:
        """The gradients of query, key, value and the inputs, in their own dtypes."""
        sums = [*self.main, *self.inputs]
        pairs = zip(sums, self._dtypes, strict=True)
        return [None if total is None else total.to(dtype) for total, dtype in pairs]


@torch.no_grad()
def run_backward(
    call: BlockCall,
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    inputs: Sequence[Tensor],
) -> Gradients:
    """The gradients of query, key, value and the inputs; None for those without one."""
    dtype = out.dtype
    totals = _Totals(call, query, key, value, inputs)
    d_query, d_key, d_value = totals.main
    delta = (grad_out.to(dtype) * out).sum(-1) - grad_lse
    # exp(score - inf) is 0 in rows without a key.
    shift = lse.masked_fill(lse == -math.inf, math.inf)
    for part in call.tiles.parts():
        rows = (part.batch, part.heads, part.queries)
        own, grad = query[rows].to(dtype) * call.scale, grad_out[rows].to(dtype)
        for first, end, masked in part.ranges:
            keys = (part.batch, part.key_heads, slice(first, end))
            indices = (*part.indices(), torch.arange(first, end))
            block_key, block_value = key[keys].to(dtype), value[keys].to(dtype)
            block = _Block(call, product(own, block_key), indices, inputs)
            attends = call.attends(indices, inputs) if masked else None
            scores = block.scores.detach()
            if attends is not None:
                scores = scores.masked_fill(~attends, -math.inf)
            weights = (scores - shift[rows].unsqueeze(-1)).exp_()
            d_value[keys] += transposed_sum(weights, grad, block_value.size(1))
            d_weights = product(grad, block_value)
            d_scores = weights * (d_weights - delta[rows].unsqueeze(-1))
            d_raw, elements, whole = block.gradients(d_scores)
            totals.add_inputs(block.places, elements, whole)
            if d_raw is None:
                continue
            if attends is not None:
                d_raw = d_raw.masked_fill(~attends, 0.0)
            d_query[rows] += weighted_sum(d_raw, block_key) * call.scale
            d_key[keys] += transposed_sum(d_raw, own, block_key.size(1))
    return totals.rounded()


class _Block:
    """The scores of a block with what their gradients are taken of."""

    def __init__(
        self, call: BlockCall, raw: Tensor, indices: Indices, inputs: Sequence[Tensor]
    ) -> None:
        self.plain = call.score is None
        self.places = call.places(raw, indices, inputs)
        self.gathered = [x.requires_grad_() for x in call.gathered(self.places, inputs)]
        self.raw = raw if self.plain else raw.requires_grad_()
        flags = [x.requires_grad for x in call.for_score(call.inputs)]
        self.whole = [
            x.detach().requires_grad_(flag)
            for x, flag in zip(call.for_score(inputs), flags, strict=True)
        ]
        with torch.enable_grad():
            self.scores = call.scores(self.raw, indices, self.whole, self.gathered)

    def gradients(
        self, d_scores: Tensor
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """The gradients of the raw scores, of the elements gathered, and of the inputs."""
        if self.plain:
            return d_scores, [], []
        leaves = [self.raw, *self.gathered, *self.whole]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found: Any = iter(
            torch.autograd.grad(self.scores, wanted, d_scores, allow_unused=True)
            if self.scores.requires_grad
            else [None] * len(wanted)
        )
        each = [next(found) if leaf.requires_grad else None for leaf in leaves]
        end = 1 + len(self.gathered)
        return each[0], each[1:end], each[end:]
