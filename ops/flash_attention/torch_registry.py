"""This package in torch's registry of implementations: `activate_flash_attention_impl`.

Importing registers the name "flash_attention"; nothing changes until it is activated. Active, it
is the CPU kernel of `torch.nn.attention.varlen.varlen_attn`, which has none in torch, and
`replace_sdpa` is in force.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import register_flash_attention_impl

from flash_attention.flash_attn_interface.arguments import compute_dtype, integers
from flash_attention.flash_attn_interface.pages import Pages
from flash_attention.sdpa import SdpaReplacement

__all__ = ["NAME", "activate"]

NAME = "flash_attention"
FUNCTION = "varlen_attn"


def _statistics_order(cu_seq_q: Tensor, heads: int) -> Tensor:
    """int64 [heads, rows]: where the row statistics of the operator have each element of lse.

    They are the concatenation of [heads, length] for every sequence.
    """
    starts = cu_seq_q.long()
    lengths = starts.diff()
    first, length = (x.repeat_interleave(lengths) for x in (starts[:-1], lengths))
    rows = torch.arange(first.numel())
    return heads * first + rows - first + torch.arange(heads).unsqueeze(1) * length


def _keys_in_use(
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """key, value, cu_seq_q and cu_seq_k of packed sequences whose keys are all in use."""
    count = cu_seq_q.numel() - 1
    if seqused_k is None:
        if block_table is not None:
            raise ValueError(f"{FUNCTION}: expected seqused_k with block_table, got None")
        if cu_seq_k is None:
            raise ValueError(f"{FUNCTION}: expected cu_seq_k or block_table, got neither")
        return key, value, cu_seq_q, cu_seq_k
    used = integers(FUNCTION, "seqused_k", seqused_k, count)
    if min(used, default=0) < 0:
        raise ValueError(f"{FUNCTION}: expected seqused_k of 0 or more, got {min(used)}")
    if block_table is not None:
        if key.dim() != 4 or value.dim() != 4 or key.shape[:2] != value.shape[:2]:
            raise ValueError(
                f"{FUNCTION}: expected key and value [pages, page_size, heads, width] with "
                f"block_table, got {list(key.shape)} and {list(value.shape)}"
            )
        pages = Pages(FUNCTION, block_table, count, key.size(0), key.size(1))
        pages.check(used)
        key, value = (
            torch.cat([x[:0].flatten(0, 1), *(pages.rows(x, n, used[n]) for n in range(count))])
            for x in (key, value)
        )
        return key, value, cu_seq_q, torch.tensor([0, *used]).cumsum(0)
    if cu_seq_k is None:
        raise ValueError(
            f"{FUNCTION}: expected cu_seq_k or block_table with seqused_k, got neither"
        )
    starts = integers(FUNCTION, "cu_seq_k", cu_seq_k, count + 1)
    ends = [start + length for start, length in zip(starts, used, strict=False)]
    for n, end in enumerate(ends):
        if end > starts[n + 1]:
            raise ValueError(
                f"{FUNCTION}: expected seqused_k of at most {starts[n + 1] - starts[n]}, the keys "
                f"of sequence {n}, got {used[n]}"
            )
    # The keys that are not in use belong to sequences of their own, without queries.
    split = [offset for pair in zip(starts, ends, strict=False) for offset in pair]
    queries = torch.cat([cu_seq_q[:1], cu_seq_q[1:].repeat_interleave(2)])
    return key, value, queries, torch.tensor([*split, starts[-1]])


def _check_supported(
    cu_seq_q: Tensor | None, dropout_p: float, alibi_slopes: Tensor | None = None
) -> Tensor:
    if dropout_p != 0 or alibi_slopes is not None:
        raise NotImplementedError(
            f"{FUNCTION}: expected no dropout_p and no alibi_slopes, got {dropout_p} and "
            f"{alibi_slopes}; flash_attention.varlen_attention has them"
        )
    if cu_seq_q is None:
        raise NotImplementedError(
            f"{FUNCTION}: expected packed sequences with cu_seq_q, got None; "
            "flash_attention.attention takes batches"
        )
    if cu_seq_q.dim() != 1 or cu_seq_q.numel() < 1:
        raise ValueError(
            f"{FUNCTION}: expected cu_seq_q [sequences + 1], got {list(cu_seq_q.shape)}"
        )
    return cu_seq_q


def _window(left: int | None, right: int | None) -> tuple[int, int]:
    return (-1 if left is None else left), (-1 if right is None else right)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """aten::_flash_attention_forward of packed sequences: out, lse [heads, rows], and no more."""
    cu_seq_q = _check_supported(cum_seq_q, dropout_p, alibi_slopes)
    packed = _keys_in_use(key, value, cu_seq_q, cum_seq_k, seqused_k, block_table)
    out, row_stats, _ = torch.ops.flash._varlen_forward(
        query,
        *packed,
        causal=is_causal,
        window=_window(window_size_left, window_size_right),
        scale=scale,
    )
    peak, total = row_stats[:, _statistics_order(cu_seq_q, query.size(1))]
    lse = peak + total.log()
    none = torch.empty(0, dtype=query.dtype)
    # +inf where a query attends no key, as flash-attn has it.
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    return out.to(query.dtype), lse, torch.zeros(2, dtype=torch.uint64), none, none.clone()


def _forward_into(out: Tensor, *arguments: object, **options: object) -> Tensor:
    """aten::_flash_attention_forward_no_dropout_inplace: lse; the result is written to `out`."""
    result, lse, *_ = torch.ops.aten._flash_attention_forward(*arguments, **options)
    if out.shape != result.shape or out.dtype != result.dtype:
        raise ValueError(
            f"{FUNCTION}: expected out {list(result.shape)} of {result.dtype}, got "
            f"{list(out.shape)} of {out.dtype}"
        )
    out.copy_(result)
    return lse


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::_flash_attention_backward of packed sequences."""
    cu_seq_q = _check_supported(cum_seq_q, dropout_p)
    order = _statistics_order(cu_seq_q, query.size(1))
    # A weight is exp(score - row_max) / row_sum; a row without a key has -inf and 0.
    row_stats = torch.empty(2, order.numel(), dtype=compute_dtype(query.dtype))
    has_keys = logsumexp != math.inf
    row_stats[0, order] = logsumexp.masked_fill(~has_keys, -math.inf).to(row_stats.dtype)
    row_stats[1, order] = has_keys.to(row_stats.dtype)
    # All options of the operator, by position, in the order of its schema.
    gradients = torch.ops.flash._varlen_backward(
        grad_out,
        query,
        key,
        value,
        cu_seq_q,
        cum_seq_k,
        out,
        row_stats,
        torch.empty(0, dtype=torch.int64),  # seed
        None,  # bias
        is_causal,
        None,  # query_positions
        _window(window_size_left, window_size_right),
        None,  # alibi_slopes
        0.0,  # softcap
        None,  # sinks
        scale,
        0.0,  # dropout
        64,  # block_size
        True,  # use_simd
        [True, True, True, False, False],  # needed
    )
    d_query, d_key, d_value = (gradient.to(query.dtype) for gradient in gradients[:3])
    return d_query, d_key, d_value


class _Activation:
    """What torch keeps while the implementation is active."""

    def __init__(self) -> None:
        library = torch.library.Library("aten", "IMPL", "CPU")
        library.impl("_flash_attention_forward", _forward)
        library.impl("_flash_attention_forward_no_dropout_inplace", _forward_into)
        library.impl("_flash_attention_backward", _backward)
        self._library: torch.library.Library | None = library
        self._replacement = SdpaReplacement()

    def remove(self) -> None:
        """Restores what was there before."""
        self._replacement.undo()
        self._library = None  # torch drops its kernels with it


def activate() -> _Activation:
    """For torch's registry: makes the implementation active until its `remove`."""
    return _Activation()


register_flash_attention_impl(NAME, register_fn=activate)
