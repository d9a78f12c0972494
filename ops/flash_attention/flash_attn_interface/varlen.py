"""Packed sequences: flash_attn_varlen_func and its packed forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from flash_attention.flash_attn_interface.arguments import (
    Shapes,
    Window,
    compute_dtype,
    lengths_between,
    score_options,
)
from flash_attention.flash_attn_interface.dense import Probs, attend_with_probs, rounded_up
from flash_attention.flash_attn_interface.pages import Pages
from flash_attention.functional import varlen_attention

__all__ = [
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
]


def options_of_sequence(options: dict[str, Any], n: int) -> dict[str, Any]:
    """The options of sequence n: its own row of slopes, if there is one for each."""
    slopes = options["alibi_slopes"]
    return options if slopes is None or slopes.dim() < 2 else options | {"alibi_slopes": slopes[n]}


def _one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_q: list[int],
    lengths_k: list[int],
    options: dict[str, Any],
) -> Probs:
    """out, softmax_lse and S_dmask from a call for each sequence."""
    # Each list begins with an empty part: there may be no sequence.
    outs = [q.new_zeros(0, q.size(1), v.size(2))]
    lses = [q.new_zeros(q.size(1), 0, dtype=compute_dtype(q.dtype))]
    masks = []
    size = rounded_up(max(lengths_q, default=0)), rounded_up(max(lengths_k, default=0))
    parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    for n, (query, key, value) in enumerate(parts):
        own = options_of_sequence(options, n)
        out, lse, mask = attend_with_probs(query[None], key[None], value[None], own)
        outs.append(out[0])
        lses.append(lse[0])
        if mask.dim() == 4:
            masks.append(pad(mask, (0, size[1] - mask.size(3), 0, size[0] - mask.size(2))))
    return torch.cat(outs), torch.cat(lses, 1), torch.cat(masks) if masks else q.new_empty(0)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | Probs:
    """flash-attn's `flash_attn_varlen_func`, computed by `flash_attention.varlen_attention`.

    Args:
        q: [total_q, nheads, headdim], the concatenated rows of all sequences; dtypes as in
            `flash_attn_func`.
        k: [total_k, nheads_k, headdim], dtype of `q`; with `block_table`, [num_blocks,
            page_block_size, nheads_k, headdim].
        v: like `k`, with a headdim of its own.
        cu_seqlens_q: int32 or int64 [batch + 1], from 0 to total_q: sequence n has rows
            cu_seqlens_q[n]:cu_seqlens_q[n + 1] of q. A sequence may be empty.
        cu_seqlens_k: the same for k and v.
        max_seqlen_q, max_seqlen_k: the longest lengths; no effect, the offsets have them.
        dropout_p, softmax_scale, causal, window_size, softcap, deterministic: as in
            `flash_attn_func`, for each sequence separately.
        alibi_slopes: [nheads] or [batch, nheads], as in `flash_attn_func`.
        return_attn_probs: also return softmax_lse and S_dmask, from a call for each sequence.
        block_table: int32 or int64 [batch, max_blocks]: rows m * page_block_size ... of the keys of
            sequence n are those of block block_table[n, m]. The blocks may have any size. The keys
            are copied out of their blocks.

    Returns:
        out [total_q, nheads, headdim_v]. With `return_attn_probs`, (out, softmax_lse, S_dmask):
        softmax_lse [nheads, total_q], and S_dmask [batch, nheads, longest seqlen_q, longest
        seqlen_k] padded to multiples of 128, else as in `flash_attn_func`.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, as the message says; offsets that decrease or
            do not end at the number of rows; a block that does not exist.
        NotImplementedError: a second derivative, as `varlen_attention`.

    >>> starts = torch.tensor([0, 3, 10], dtype=torch.int32)
    >>> q, k, v = (torch.randn(10, 4, 16) for _ in range(3))
    >>> flash_attn_varlen_func(q, k, v, starts, starts, 7, 7, causal=True).shape
    torch.Size([10, 4, 16])
    """
    shapes = Shapes("flash_attn_varlen_func")
    shapes.check("q", q, "total_q", "nheads", "headdim")
    rows: tuple[str, ...] = ("total_k",)
    if block_table is not None:
        rows = ("num_blocks", "page_block_size")
    shapes.check("k", k, *rows, "nheads_k", "headdim")
    shapes.check("v", v, *rows, "nheads_k", "headdim_v")
    shapes.check_dtype(q, k=k, v=v)
    shapes.check_heads()
    shapes.check("cu_seqlens_q", cu_seqlens_q, "batch + 1")
    shapes.check("cu_seqlens_k", cu_seqlens_k, "batch + 1")
    count = shapes["batch + 1"] - 1
    shapes.set("batch", count)
    options = score_options(
        shapes,
        q,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
    )
    if block_table is not None:
        lengths = lengths_between(shapes.function, "cu_seqlens_k", cu_seqlens_k, count)
        pages = Pages(shapes.function, block_table, count, k.size(0), k.size(1))
        pages.check(lengths)
        k, v = (
            torch.cat([x[:0].flatten(0, 1), *(pages.rows(x, n, lengths[n]) for n in range(count))])
            for x in (k, v)
        )
    if return_attn_probs:
        lengths_q = lengths_between(shapes.function, "cu_seqlens_q", cu_seqlens_q, count, q.size(0))
        lengths_k = lengths_between(shapes.function, "cu_seqlens_k", cu_seqlens_k, count, k.size(0))
        return _one_by_one(q, k, v, lengths_q, lengths_k, options)
    return varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | Probs:
    """`flash_attn_varlen_func` with keys and values in one tensor.

    Args:
        q: [total_q, nheads, headdim].
        kv: [total_k, 2, nheads_k, headdim], dtype of `q`.
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
            window_size, softcap, alibi_slopes, deterministic, return_attn_probs: as in
            `flash_attn_varlen_func`.

    Returns:
        As `flash_attn_varlen_func`, and errors as well.
    """
    shapes = Shapes("flash_attn_varlen_kvpacked_func")
    shapes.check("q", q, "total_q", "nheads", "headdim")
    shapes.check("kv", kv, "total_k", 2, "nheads_k", "headdim")
    shapes.check_dtype(q, kv=kv)
    shapes.check_heads("kv")
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | Probs:
    """`flash_attn_varlen_func` with queries, keys and values in one tensor.

    Args:
        qkv: [total, 3, nheads, headdim].
        cu_seqlens: int32 or int64 [batch + 1], from 0 to total.
        max_seqlen: the longest length; no effect.
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
            return_attn_probs: as in `flash_attn_varlen_func`.

    Returns:
        As `flash_attn_varlen_func`, and errors as well.
    """
    shapes = Shapes("flash_attn_varlen_qkvpacked_func")
    shapes.check("qkv", qkv, "total", 3, "nheads", "headdim")
    shapes.check_dtype(qkv, "qkv")
    shapes.check("cu_seqlens", cu_seqlens, "batch + 1")
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
