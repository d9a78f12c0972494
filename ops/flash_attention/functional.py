"""`torch.ops.flash.*` as typed, documented functions.

In shapes, B is the batch size; H, Hk and Hv are the numbers of heads of query, key and value; L is
the number of queries and S that of keys; D is head_dim, the width of query and key, and Dv the
width of value. The C++ functions of the same names are in `<flash_attention/ops.h>`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias

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


def _checked(bias: Tensor | None) -> Tensor | None:
    if isinstance(bias, CausalBias):
        raise TypeError(
            "flash::attention: expected bias with elements, got a CausalBias, which has none; use "
            "causal=True, for causal_upper_left together with query_positions=torch.arange(L)"
        )
    return bias


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

    Exact, in O(L + S) memory, forward and backward. Differentiable twice, and in forward mode, in
    `query`, `key`, `value`, `alibi_slopes`, `sinks` and a floating `bias`. `torch.vmap` merges
    all calls into one. The result is bitwise identical for any number of threads. A query whose
    keys are all masked gives zeros and zero gradients.

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
            16-bit types are computed in float32, and the results are rounded once; with AMX or
            AVX512-BF16, weights of bfloat16 are rounded, too. With AMX, float32 follows
            `torch.set_float32_matmul_precision`.
        key: [B, Hk, S, D] or [B, S, D], dtype of `query`; H is a multiple of Hk.
        value: [B, Hv, S, Dv] or [B, S, Dv], dtype of `query`; H is a multiple of Hv. Hk and Hv may
            differ, and so may D and Dv.
        bias: broadcasts to [B, H, L, S] ([B, L, S] for 3-D inputs) as in NumPy. In the dtype of
            `query` it is added to the scaled scores, and -inf masks a key. In bool, True means that
            the query attends the key. With a 16-bit `query` it may be float32, and so may
            `alibi_slopes` and `sinks`.
        causal: a query attends the keys at positions up to its own. The queries are at the last L
            of the S positions (bottom-right alignment), unless `query_positions` is given.
        query_positions: int64, broadcasts to [B, H, L] ([B, L] for 3-D inputs): the position of
            each query, for `causal`, `window` and `alibi_slopes`. `torch.arange(L)` gives torch's
            top-left causal mask.
        window: (left, right): a query at position p attends keys p - left ... p + right; -1 means
            no bound on that side. `causal` makes right 0. Keys outside the window take no time.
            None means (-1, -1). An int w means (w, w), as elsewhere in torch.
        alibi_slopes: [H] or [B, H], dtype of `query`: -slope * |position - key| is added to the
            scores of the head.
        softcap: c > 0 turns a scaled score s into c * tanh(s / c), before anything is added to it;
            finite; 0 means none.
        sinks: [H] or [B, H], dtype of `query`: attention sinks. Each row of the head has this score
            in its softmax, without a value, so that its weights sum to less than 1. A row whose
            keys are all masked still gives zeros.
        scale: factor on the scores; None means 1/sqrt(D).
        dropout: probability in [0, 1] of dropping an attention weight; the others are scaled by
            1/(1 - dropout). The seed comes from torch's CPU generator.
        block_size: keys per online-softmax step, at least 1. It affects speed and scratch memory,
            and the result only by rounding.
        use_simd: False forces the scalar kernels.

    Returns:
        [B, H, L, Dv] or [B, L, Dv], in the dtype of `query`.

    Raises:
        TypeError: dtypes that differ or are not floating, or a wrong dtype of `bias`,
            `alibi_slopes`, `sinks` or `query_positions`.
        ValueError: shapes that do not match, a side of `window` below -1, a `softcap` that is
            negative or not finite, `dropout` outside [0, 1], `block_size` below 1, or an
            FLASH_ATTENTION_ISA that names kernels that do not exist or do not run on this CPU.
        NotImplementedError: a third derivative, which `standard_attention` has; tensors on another
            device.

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
        bias=_checked(bias),
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
    """Like `attention`, and also returns the log-sum-exp of each row, for merging partial results.

    Source: the L of Dao, FlashAttention-2 (arXiv:2307.08691), section 3.1, algorithm 1.

    Args:
        query, key, value, bias, causal, query_positions, window, alibi_slopes, softcap, sinks,
            scale, dropout, block_size, use_simd: as in `attention`.

    Returns:
        The output of `attention`, and lse [B, H, L] ([B, L] for 3-D inputs): the natural logarithm
        of the sum of exponentials of the scores of each row and its sink, before dropout; -inf
        where all keys of a query are masked. lse is float32 for the 16-bit types, otherwise of the
        dtype of `query`. Both are differentiable.

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
        bias=_checked(bias),
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
    """`attention` of each of N sequences of unequal lengths, concatenated without padding.

    The threads share the work of all sequences. Differentiable once in `query`, `key`, `value`,
    `alibi_slopes` and `sinks`, by `torch.autograd`.

    Args:
        query: [Tq, H, D], the concatenated rows of all sequences; dtypes as for `attention`.
        key: [Tk, Hk, D], dtype of `query`.
        value: [Tk, Hv, Dv], dtype of `query`.
        cu_seqlens_q: int32 or int64 [N + 1], from 0 to Tq: sequence n has rows
            cu_seqlens_q[n]:cu_seqlens_q[n + 1] of query. A sequence may be empty.
        cu_seqlens_k: the same for key and value, from 0 to Tk.
        causal, window, softcap, scale, dropout, block_size, use_simd: as in `attention`, for each
            sequence separately.
        alibi_slopes, sinks: [H] or [N, H], as in `attention`.

    Returns:
        [Tq, H, Dv], in the dtype of `query`.

    Raises:
        TypeError, ValueError: as `attention`, or offsets that decrease or do not end at the number
            of rows.
        NotImplementedError: a second derivative, forward mode, a transform of `torch.func`, or
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
    """The reference for `attention`, in O(L S) memory and with derivatives of any order.

    It consists of ordinary tensor operations. Tests and benchmarks compare with it. A weight of 0
    is multiplied like any other: unlike with `attention`, a NaN or Inf in the value of a masked
    key, or in the gradient of a query that it is masked for, makes the products NaN.

    Source: Vaswani et al., Attention is all you need (arXiv:1706.03762), equation 1.

    Args:
        query, key, value, bias, causal, query_positions, window, alibi_slopes, softcap, sinks,
            scale, dropout: as in `attention`. After the same `torch.manual_seed`, both drop the
            same weights.

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
        bias=_checked(bias),
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
    """The dropout mask that the next call of `attention` would use.

    Draws its seed from torch's CPU generator as `attention` does: after the same
    `torch.manual_seed`, both use the same mask. It is a function of the seed and the indices of an
    element only, and so the same for any block size, number of threads and ISA.

    Source: Philox4x32-10 of Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).

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
    """The shape, for torch.compile: without a tensor argument, no Meta kernel is called."""
    return torch.empty(batch, heads, queries, keys, dtype=torch.bool)


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set that the library has kernels for.

    Attributes:
        name: its name in the environment variable FLASH_ATTENTION_ISA.
        description: the instructions that its kernels use.
        supported: whether this CPU has them.
    """

    name: str
    description: str
    supported: bool


@dataclass(frozen=True)
class BuildInfo:
    """Facts about the loaded library.

    Attributes:
        version: the version of flash_attention.
        torch_version: the version of torch that it was compiled against.
        isa: the instruction sets that it has kernels for, best first.
        active: the name of the one in use.
    """

    version: str
    torch_version: str
    isa: tuple[InstructionSet, ...]
    active: str


def build_info() -> BuildInfo:
    """The library's version, the torch that it was compiled against, and its kernels.

    Raises:
        ValueError: FLASH_ATTENTION_ISA names kernels that do not exist or do not run on this CPU.

    >>> "scalar" in [isa.name for isa in build_info().isa]
    True
    """
    info = json.loads(torch.ops.flash._build_info())
    return BuildInfo(
        version=info["version"],
        torch_version=info["torch"],
        isa=tuple(InstructionSet(**isa) for isa in info["isa"]),
        active=info["active"],
    )
