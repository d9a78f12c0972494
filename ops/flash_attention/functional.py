"""`torch.ops.flash.*` as typed, documented functions.

Letters in shapes: B batch, H query heads, Hk key heads, Hv value heads, L queries, S keys, D head
dimension, Dv value dimension. The C++ functions of the same names are in `<flash_attention/ops.h>`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "BuildInfo",
    "InstructionSet",
    "attention",
    "attention_with_lse",
    "build_info",
    "dropout_mask",
    "standard_attention",
    "varlen_attention",
]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    query_positions: Tensor | None = None,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    block_size: int = 64,
    use_simd: bool = True,
) -> Tensor:
    """softmax(softcap(scale * query key^T) + alibi + bias) value, without ever forming [L, S].

    Exact, in O(L + S) memory, forward and backward; differentiable in `query`, `key`, `value`,
    `alibi_slopes`, `sinks` and a floating `bias`, twice, and in forward mode; `torch.vmap` makes
    one call. The bits do not depend on the number of threads.
    A query with nothing to attend gives zeros and zero gradients.

    Sources: Dao et al., FlashAttention (arXiv:2205.14135), algorithm 1 and, for the backward,
    appendix B.2; Dao, FlashAttention-2 (arXiv:2307.08691), section 3.1; Milakov and Gimelshein,
    Online normalizer calculation for softmax (arXiv:1805.02867), algorithm 3. For the options:
    Beltagy et al., Longformer (arXiv:2004.05150), section 3.1, and Jiang et al., Mistral 7B
    (arXiv:2310.06825), section 2, the window; Press et al., Train short, test long
    (arXiv:2108.12409), section 3, the slopes; Gemma 2 (arXiv:2408.00118), section 2, the softcap;
    Xiao et al., Efficient streaming language models with attention sinks (arXiv:2309.17453),
    section 3.3, and gpt-oss (arXiv:2508.10925), the sinks.

    Args:
        query: [B, H, L, D] or [B, L, D], float32, float64, bfloat16 or float16, any strides. The
            16-bit ones are computed in float32 and the results rounded once.
        key: [B, Hk, S, D] or [B, S, D], dtype of `query`; H is a multiple of Hk.
        value: [B, Hv, S, Dv] or [B, S, Dv], dtype of `query`; H is a multiple of Hv. Hk and Hv may
            differ, and so may D and Dv.
        bias: broadcasts to [B, H, L, S] ([B, L, S] for 3-D inputs) as in NumPy. In the dtype of
            `query` it is added to the scaled scores, and -inf excludes a key; in bool, True means
            that the query attends the key. Beside a `query` of 16 bits it may be float32, and so
            may `alibi_slopes` and `sinks`.
        causal: a query attends the keys at positions up to its own. The queries are the last L of
            the S positions (bottom-right), unless `query_positions` says otherwise.
        query_positions: int64, broadcasts to [B, H, L] ([B, L] for 3-D inputs): the position of
            each query, for `causal`, `window` and `alibi_slopes`. `torch.arange(L)` gives torch's
            top-left causal mask.
        window: (left, right): a query at position p attends keys p - left ... p + right; -1 means
            no bound on that side. `causal` makes right 0. Keys outside cost no time. None means
            (-1, -1); an int w is read as (w, w), as everywhere in torch.
        alibi_slopes: [H] or [B, H], dtype of `query`: -slope * |position - key| is added to the
            scores of the head.
        softcap: c > 0 turns a scaled score s into c * tanh(s / c), before anything is added to it;
            finite; 0 means none.
        sinks: [H] or [B, H], dtype of `query`: a score that takes part in the softmax of each row
            of the head and has no value, so that the row's weights sum to less than 1. A row that
            attends nothing else still gives zeros.
        scale: factor on the scores; None means 1/sqrt(D).
        dropout: probability in [0, 1] of dropping an attention weight; the others are scaled by
            1/(1 - dropout). The seed comes from torch's CPU generator.
        block_size: keys per online-softmax step, at least 1. Changes speed and scratch memory, and
            the result only by rounding.
        use_simd: False forces the scalar kernels.

    Returns:
        [B, H, L, Dv] or [B, L, Dv], in the dtype of `query`.

    Raises:
        TypeError: the dtypes differ, or are not floating; a bias, slopes, sinks or positions of the
            wrong dtype.
        ValueError: shapes that do not go together, a window of numbers below -1, a `softcap` that
            is negative or not finite, `dropout` outside [0, 1], `block_size` below 1, or
            FLASH_ATTENTION_ISA naming kernels that do not exist or do not run here.
        NotImplementedError: a third derivative (take `standard_attention` for that).

    >>> q = torch.randn(1, 4, 10, 16, requires_grad=True)
    >>> k, v = torch.randn(1, 2, 30, 16), torch.randn(1, 1, 30, 8)
    >>> out = attention(q, k, v, causal=True)
    >>> out.shape
    torch.Size([1, 4, 10, 8])
    >>> out.sum().backward()
    >>> q.grad.shape
    torch.Size([1, 4, 10, 16])
    """
    return torch.ops.flash.attention(
        query,
        key,
        value,
        bias=bias,
        causal=causal,
        query_positions=query_positions,
        window=window,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        scale=scale,
        dropout=dropout,
        block_size=block_size,
        use_simd=use_simd,
    )


def attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    query_positions: Tensor | None = None,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    block_size: int = 64,
    use_simd: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `attention`, and also each row's log-sum-exp, with which partial results are joined.

    Source: the L of Dao, FlashAttention-2 (arXiv:2307.08691), section 3.1, algorithm 1.

    Args:
        query, key, value, bias, causal, query_positions, window, alibi_slopes, softcap, sinks,
            scale, dropout, block_size, use_simd: as in `attention`.

    Returns:
        The output of `attention`, and lse [B, H, L] ([B, L] for 3-D inputs) in the same dtype: the
        natural logarithm of the sum of the exponentials of a row's scores, that of its sink among
        them, before dropout; -inf where a query has nothing to attend. Both are differentiable.

    Raises:
        TypeError, ValueError, NotImplementedError: as `attention`.

    >>> q, k, v = torch.randn(1, 5, 4), torch.randn(1, 6, 4), torch.randn(1, 6, 4)
    >>> out, lse = attention_with_lse(q, k, v)
    >>> torch.testing.assert_close(lse, (q @ k.mT / 2).logsumexp(-1))
    """
    return torch.ops.flash.attention_with_lse(
        query,
        key,
        value,
        bias=bias,
        causal=causal,
        query_positions=query_positions,
        window=window,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        scale=scale,
        dropout=dropout,
        block_size=block_size,
        use_simd=use_simd,
    )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    block_size: int = 64,
    use_simd: bool = True,
) -> Tensor:
    """`attention` of each of N sequences of unequal lengths, packed without padding.

    The sequences share the threads. Differentiable once in `query`, `key`, `value`, `alibi_slopes`
    and `sinks`, by `torch.autograd`.

    Args:
        query: [Tq, H, D], the rows of all sequences, one behind the other; dtypes as
            `attention`.
        key: [Tk, Hk, D], dtype of `query`.
        value: [Tk, Hv, Dv], dtype of `query`.
        cu_seqlens_q: int32 or int64 [N + 1], from 0 to Tq: sequence n has the rows of query from
            cu_seqlens_q[n] to before cu_seqlens_q[n + 1]. May be none.
        cu_seqlens_k: the same of key and value.
        causal, window, softcap, scale, dropout, block_size, use_simd: as in `attention`, of each
            sequence by itself.
        alibi_slopes, sinks: [H] or [N, H], as in `attention`.

    Returns:
        [Tq, H, Dv], in the dtype of `query`.

    Raises:
        TypeError, ValueError: as `attention`; offsets that fall or do not end with the rows there
            are.
        NotImplementedError: a second derivative, forward mode, a transform of `torch.func`,
            `torch.vmap`; `attention` of each sequence has them.

    >>> starts = torch.tensor([0, 3, 10])
    >>> q, k, v = (torch.randn(10, 4, 16) for _ in range(3))
    >>> out = varlen_attention(q, k, v, starts, starts, causal=True)
    >>> alone = attention(*(x[3:].transpose(0, 1)[None] for x in (q, k, v)), causal=True)
    >>> torch.testing.assert_close(out[3:].transpose(0, 1)[None], alone)
    """
    return torch.ops.flash.varlen_attention(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        causal=causal,
        window=window,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        scale=scale,
        dropout=dropout,
        block_size=block_size,
        use_simd=use_simd,
    )


def standard_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    query_positions: Tensor | None = None,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What `attention` computes, the textbook way: O(L S) memory, and any number of derivatives.

    The reference that the tests and tables compare with. Made of ordinary tensor operations.

    Source: Vaswani et al., Attention is all you need (arXiv:1706.03762), equation 1.

    Args:
        query, key, value, bias, causal, query_positions, window, alibi_slopes, softcap, sinks,
            scale, dropout: as in `attention`; after the same `torch.manual_seed` both drop the same
            weights.

    Returns:
        [B, H, L, Dv] or [B, L, Dv], in the dtype of `query`.

    Raises:
        TypeError, ValueError, NotImplementedError: as `attention`.

    >>> q, k, v = (torch.randn(2, 4, 7, 8, dtype=torch.float64) for _ in range(3))
    >>> torch.testing.assert_close(standard_attention(q, k, v), attention(q, k, v))
    """
    return torch.ops.flash.standard_attention(
        query,
        key,
        value,
        bias=bias,
        causal=causal,
        query_positions=query_positions,
        window=window,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        scale=scale,
        dropout=dropout,
    )


def dropout_mask(batch: int, heads: int, queries: int, keys: int, dropout: float) -> Tensor:
    """The weights that the next call of `attention` would keep.

    Draws its seed from torch's CPU generator exactly as `attention` does, so after
    `torch.manual_seed(s)` it is the mask that `attention` uses after `torch.manual_seed(s)`.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), Philox4x32-10, of
    the seed and the element's place; nothing else, so block size, threads and ISA do not matter.

    Args:
        batch, heads, queries, keys: B, H, L and S of the attention; H = 1 for 3-D inputs.
        dropout: probability in [0, 1] of dropping a weight.

    Returns:
        bool [batch, heads, queries, keys], True where the weight is kept.

    Raises:
        ValueError: a negative size, or `dropout` outside [0, 1].

    >>> dropout_mask(1, 2, 3, 5, dropout=0.0).all()
    tensor(True)
    """
    return torch.ops.flash.dropout_mask(batch, heads, queries, keys, dropout)


@torch.library.register_fake("flash::dropout_mask")
def _dropout_mask_fake(batch: int, heads: int, queries: int, keys: int, dropout: float) -> Tensor:
    """The shape alone, for torch.compile: without a tensor argument no Meta kernel is asked."""
    return torch.empty(batch, heads, queries, keys, dtype=torch.bool)


@dataclass(frozen=True)
class InstructionSet:
    """A set of kernels in the library.

    Attributes:
        name: as the environment variable FLASH_ATTENTION_ISA spells it.
        description: what it is made of.
        supported: whether this CPU runs it.
    """

    name: str
    description: str
    supported: bool


@dataclass(frozen=True)
class BuildInfo:
    """What the loaded library is.

    Attributes:
        version: of flash_attention.
        torch_version: of the torch that it was compiled against.
        isa: every set of kernels in it, best first.
        active: the name of the one in use.
    """

    version: str
    torch_version: str
    isa: tuple[InstructionSet, ...]
    active: str


def build_info() -> BuildInfo:
    """The library's version, the torch it was compiled against, and its kernels.

    Raises:
        ValueError: FLASH_ATTENTION_ISA names kernels that do not exist or do not run here.

    >>> [isa.name for isa in build_info().isa][-1]
    'scalar'
    """
    info = json.loads(torch.ops.flash._build_info())
    return BuildInfo(
        version=info["version"],
        torch_version=info["torch"],
        isa=tuple(InstructionSet(**isa) for isa in info["isa"]),
        active=info["active"],
    )
