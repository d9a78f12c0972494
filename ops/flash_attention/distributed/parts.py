"""Attention of some queries over some keys, and the sum of such parts.

A part gives its output and two statistics of each row: the largest score and the sum of
exponentials. They are joined in float32, or float64 for float64 inputs. The backward of a part
needs the output and the statistics of the whole row, and nothing else of the other parts.

Source: Dao, FlashAttention-2 (arXiv:2307.08691), section 3.1, with the parts of a row on several
processes instead of one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attention.distributed.schedule import Block, Reach

__all__ = [
    "Options",
    "Rows",
    "Saved",
    "backward_of_part",
    "forward_of_part",
    "forward_of_whole_rows",
    "gradient_of_sinks",
]


@dataclass(frozen=True)
class Options:
    """What a call of attention says besides its tensors, equal on all processes.

    `first_head` and `heads`: where the heads of this process are among those of the whole call.
    """

    causal: bool
    window: tuple[int, int]
    softcap: float
    scale: float | None
    dropout: float
    seed: Tensor
    heads: int
    first_head: int = 0

    @property
    def reach(self) -> Reach:
        left, right = self.window
        if self.causal:
            right = 0
        return Reach(None if left < 0 else left, None if right < 0 else right)

    def of_part(self, block: Block, slopes: Tensor | None) -> dict[str, object]:
        """The options of the operator for a part: positions count from its first key."""
        first = block.query.begin - block.key.begin
        positions = None
        if self.reach != Reach() or slopes is not None:
            positions = torch.arange(first, first + block.query.length)
        return {
            "bias": None,
            "causal": self.causal,
            "query_positions": positions,
            "window": list(self.window),
            "alibi_slopes": slopes,
            "softcap": self.softcap,
            "sinks": None,  # Rows.finish and gradient_of_sinks count them once
            "scale": self.scale,
            "dropout": self.dropout,
            "block_size": 64,
            "use_simd": True,
        }

    def place(self, block: Block) -> list[int]:
        return [0, self.first_head, block.query.begin, block.key.begin, self.heads]


def forward_of_part(
    query: Tensor, key: Tensor, value: Tensor, block: Block, options: Options, slopes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """out [B, H, L, Dv] and row_stats [2, B, H, L], in the dtype that the kernels compute in."""
    return _forward(query, key, value, block, options, False, options.of_part(block, slopes))


def forward_of_whole_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: Block,
    options: Options,
    slopes: Tensor | None,
    sinks: Tensor | None,
    block_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """`forward_of_part` with every key that the queries attend, and the sinks."""
    given = {**options.of_part(block, slopes), "sinks": sinks, "block_size": block_size}
    return _forward(query, key, value, block, options, True, given)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: Block,
    options: Options,
    whole_rows: bool,
    given: dict[str, object],
) -> tuple[Tensor, Tensor]:
    return torch.ops.flash._forward_part(
        query, key, value, options.seed, options.place(block), whole_rows, **given
    )


class Rows:
    """The output of some rows, as the sum of the parts that were added so far."""

    def __init__(self, query: Tensor, value: Tensor, sinks: Tensor | None) -> None:
        dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
        rows = query.shape[:3]
        self._sinks = None if sinks is None else sinks.detach().to(dtype)
        self._sum_of_values = query.new_zeros((*rows, value.size(3)), dtype=dtype)
        self._max = query.new_full(rows, -torch.inf, dtype=dtype)
        self._sum = query.new_zeros(rows, dtype=dtype)

    def add(self, rows: slice, out: Tensor, row_stats: Tensor) -> None:
        """Adds a part of the rows, whose scores have the statistics `row_stats`."""
        old_max = self._max[:, :, rows]
        new_max = torch.maximum(old_max, row_stats[0])
        # -inf - (-inf) is NaN, so a row without a score so far subtracts 0 instead.
        base = new_max.masked_fill(new_max == -torch.inf, 0.0)
        old_weight = (old_max - base).exp_()
        weight = (row_stats[0] - base).exp_().mul_(row_stats[1])
        values = self._sum_of_values[:, :, rows]
        values.mul_(old_weight.unsqueeze(-1)).addcmul_(out, weight.unsqueeze(-1))
        self._sum[:, :, rows].mul_(old_weight).add_(weight)
        old_max.copy_(new_max)

    def finish(self) -> tuple[Tensor, Tensor]:
        """The output and the statistics of the whole rows. Nothing can be added any more."""
        if self._sinks is not None:
            new_max = torch.maximum(self._max, self._sinks.unsqueeze(-1))
            base = new_max.masked_fill(new_max == -torch.inf, 0.0)
            weight = (self._max - base).exp_()
            self._sum.mul_(weight).add_((self._sinks.unsqueeze(-1) - base).exp_())
            self._sum_of_values.mul_(weight.unsqueeze(-1))
            self._max = new_max
        # Each query attends the key at its own position. If all its scores are -inf, the sum is 0,
        # and the result NaN, as that of a softmax.
        self._sum.masked_fill_(self._sum == 0, torch.nan)
        out = self._sum_of_values.div_(self._sum.unsqueeze(-1))
        return out, torch.stack((self._max, self._sum))


@dataclass(frozen=True)
class Saved:
    """What the backward needs to know of whole rows: the results and their cotangents."""

    out: Tensor
    row_stats: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None

    def of(self, rows: slice) -> Saved:
        return Saved(
            self.out[:, :, rows],
            self.row_stats[:, :, :, rows],
            self.grad_out[:, :, rows],
            None if self.grad_lse is None else self.grad_lse[:, :, rows],
        )


def backward_of_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: Block,
    options: Options,
    slopes: Tensor | None,
    saved: Saved,
    needed: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The terms of a part in the gradients of query, key, value and slopes; [0] if not needed."""
    d_query, d_key, d_value, _, d_slopes, _ = torch.ops.flash._backward_part(
        saved.grad_out,
        saved.grad_lse,
        query,
        key,
        value,
        saved.out,
        saved.row_stats,
        options.seed,
        options.place(block),
        **options.of_part(block, slopes),
        needed=[*needed[:3], False, needed[3], False],
    )
    return d_query, d_key, d_value, d_slopes


def gradient_of_sinks(sinks: Tensor, saved: Saved) -> Tensor:
    """The gradient of `sinks`, [H] or [B, H], from the rows of this process.

    The weight of a sink has no value, so that only the normalization of the others depends on it:
    its score has the gradient weight * (grad_lse - rowsum(grad_out * out)).
    """
    row_max, row_sum = saved.row_stats
    weight = (sinks.to(row_max.dtype).unsqueeze(-1) - row_max).exp_().div_(row_sum)
    change = (saved.grad_out * saved.out).sum(-1).neg_()
    if saved.grad_lse is not None:
        change += saved.grad_lse
    sums = weight.mul_(change).sum(-1, dtype=torch.float64)
    return (sums.sum(0) if sinks.dim() == 1 else sums).to(sinks.dtype)
