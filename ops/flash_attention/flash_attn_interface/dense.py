"""Sequences of one length: flash_attn_func and its packed forms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flash_attention.flash_attn_interface.arguments import Shapes, Window, score_options
from flash_attention.functional import attention, attention_with_lse

__all__ = [
    "attend",
    "attend_with_probs",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "rounded_up",
]

Probs = tuple[Tensor, Tensor, Tensor]


def rounded_up(length: int) -> int:
    """`length` as a multiple of 128, the padding of flash-attn's S_dmask."""
    return -(-length // 128) * 128


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """`attention` of [batch, seqlen, nheads, headdim].

    Contiguous like flash-attn's output, which callers view as [batch, seqlen, nheads * headdim].
    """
    out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)
    return out.transpose(1, 2).contiguous()


def attend_with_lse(
    q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Like `attend`, and softmax_lse [batch, nheads, seqlen_q], +inf for rows without a key."""
    out, lse = attention_with_lse(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options
    )
    return out.transpose(1, 2).contiguous(), lse.masked_fill(lse == -math.inf, math.inf)


def _signed_weights(q: Tensor, k: Tensor, options: dict[str, Any]) -> Tensor:
    """softmax(scores), negative where dropped, [batch, nheads, seqlen_q, seqlen_k], padded.

    With the identity as values, the output of attention is its weights.
    """
    keys = k.size(1)
    identity = torch.eye(keys, dtype=q.dtype).expand(q.size(0), 1, keys, keys)
    query, key = q.detach().transpose(1, 2), k.detach().transpose(1, 2)
    with torch.no_grad():
        weights = attention(query, key, identity, **options | {"dropout": 0.0})
        kept = attention(query, key, identity, **options) != 0
        signed = torch.where(kept, weights, -weights)
    padding = (0, rounded_up(keys) - keys, 0, rounded_up(q.size(1)) - q.size(1))
    return torch.nn.functional.pad(signed, padding)


def attend_with_probs(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Probs:
    """out, softmax_lse and S_dmask; S_dmask is empty without dropout, as in flash-attn."""
    if options["dropout"] == 0:
        return *attend_with_lse(q, k, v, options), q.new_empty(0)
    before = torch.get_rng_state()
    signed = _signed_weights(q, k, options)
    torch.set_rng_state(before)  # for the same seed
    return *attend_with_lse(q, k, v, options), signed


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | Probs:
    """flash-attn's `flash_attn_func`, computed by `flash_attention.attention`.

    Args:
        q: [batch, seqlen_q, nheads, headdim], float32, float64, bfloat16 or float16, any strides.
        k: [batch, seqlen_k, nheads_k, headdim], dtype of `q`; nheads is a multiple of nheads_k.
        v: [batch, seqlen_k, nheads_k, headdim_v], dtype of `q`.
        dropout_p: probability of dropping an attention weight; 0 for evaluation.
        softmax_scale: factor on the scores; None means 1/sqrt(headdim).
        causal: query i attends keys up to i + seqlen_k - seqlen_q (bottom-right alignment).
        window_size: (left, right): query i attends keys from i + seqlen_k - seqlen_q - left to
            i + seqlen_k - seqlen_q + right; a negative side has no bound.
        softcap: c > 0 turns a scaled score s into c * tanh(s / c).
        alibi_slopes: [nheads] or [batch, nheads], float32 or the dtype of `q`: adds
            -slope * |i + seqlen_k - seqlen_q - j| to the score of query i and key j. They get a
            gradient, unlike in flash-attn.
        deterministic: no effect; the results are always the same, for any number of threads.
        return_attn_probs: also return softmax_lse and S_dmask.

    Returns:
        out [batch, seqlen_q, nheads, headdim_v], contiguous. A query that attends no key gives
        zeros. With `return_attn_probs`, (out, softmax_lse, S_dmask): softmax_lse [batch, nheads,
        seqlen_q], the logarithm of each row's sum of exponentials, +inf where a query attends no
        key, of float64 for float64 and otherwise of float32; S_dmask, empty without dropout, or the
        weights, [batch, nheads, seqlen_q, seqlen_k] padded to multiples of 128, with a negative
        sign where they were dropped. S_dmask takes the memory that attention does not.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, as the message says, or as `attention`.
        NotImplementedError: tensors on another device.

    >>> q = torch.randn(2, 10, 4, 16, requires_grad=True)
    >>> k, v = torch.randn(2, 30, 2, 16), torch.randn(2, 30, 2, 16)
    >>> flash_attn_func(q, k, v, causal=True).shape
    torch.Size([2, 10, 4, 16])
    """
    shapes = Shapes("flash_attn_func")
    shapes.check("q", q, "batch", "seqlen_q", "nheads", "headdim")
    shapes.check("k", k, "batch", "seqlen_k", "nheads_k", "headdim")
    shapes.check("v", v, "batch", "seqlen_k", "nheads_k", "headdim_v")
    shapes.check_dtype(q, k=k, v=v)
    shapes.check_heads()
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
    return (attend_with_probs if return_attn_probs else attend)(q, k, v, options)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | Probs:
    """`flash_attn_func` with keys and values in one tensor.

    Args:
        q: [batch, seqlen_q, nheads, headdim].
        kv: [batch, seqlen_k, 2, nheads_k, headdim], dtype of `q`.
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
            return_attn_probs: as in `flash_attn_func`.

    Returns:
        As `flash_attn_func`, and errors as well.
    """
    shapes = Shapes("flash_attn_kvpacked_func")
    shapes.check("q", q, "batch", "seqlen_q", "nheads", "headdim")
    shapes.check("kv", kv, "batch", "seqlen_k", 2, "nheads_k", "headdim")
    shapes.check_dtype(q, kv=kv)
    shapes.check_heads("kv")
    k, v = kv.unbind(2)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | Probs:
    """`flash_attn_func` with queries, keys and values in one tensor.

    Args:
        qkv: [batch, seqlen, 3, nheads, headdim].
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
            return_attn_probs: as in `flash_attn_func`.

    Returns:
        As `flash_attn_func`, and errors as well.
    """
    shapes = Shapes("flash_attn_qkvpacked_func")
    shapes.check("qkv", qkv, "batch", "seqlen", 3, "nheads", "headdim")
    shapes.check_dtype(qkv, "qkv")
    q, k, v = qkv.unbind(2)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
