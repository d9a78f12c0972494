"""flex_attention: torch's FlexAttention on the CPU, with a backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # loads the compiler when it is used
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, noop_mask

from flash_attention.flash_attn_interface.arguments import FLOATING, compute_dtype
from flash_attention.flex.autograd import attend_in_blocks
from flash_attention.flex.block_mods import BlockMod
from flash_attention.flex.blocks import BlockCall
from flash_attention.flex.kernels import KernelCall, kernel_call
from flash_attention.flex.recording import record
from flash_attention.flex.tiles import Sizes, Tiles

__all__ = ["flex_attention"]

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """`torch.nn.attention.flex_attention.flex_attention`, with a backward on the CPU.

    softmax(score_mod(scale * query key^T), masked by block_mask) value in O(L + S) memory, forward
    and backward. What the kernels of `attention` can do, they do: causal masks, windows, prefixes,
    padding and documents in `block_mask`; a factor, softcap, ALiBi and a bias in `score_mod`.
    Everything else is computed by blocks of scores with torch's operators. Either way, blocks that
    `block_mask` does not list cost no time, and the results are those of torch's definition.

    Differentiable in query, key, value and in the tensors that `score_mod` captures, twice where
    computed by blocks or by `attention`.

    Source: Dong et al., Flex Attention (arXiv:2412.05496).

    Args:
        query: [B, H, L, D], float32, float64, bfloat16 or float16, any strides. The 16-bit types
            are computed in float32.
        key: [B, Hk, S, D], dtype of `query`; Hk is H, or with `enable_gqa` any divisor of H. Its
            batch size may be 1.
        value: [B, Hk, S, Dv], dtype of `query`.
        score_mod: a function of (score, b, h, q_idx, kv_idx), five scalar tensors, that returns the
            new score; called once for each call. `score` has the dtype that is computed in, the
            others are int64; `h` counts query heads. It computes with torch's operators, without
            reading elements, random numbers or in-place operations, and where gradients are
            recorded, without `torch.autograd.Function` and `torch.no_grad`.
        block_mask: of torch's `create_block_mask`, with `device="cpu"`; its lengths are L and S.
        scale: factor on the scores; None means 1/sqrt(D).
        enable_gqa: heads of key and value are shared by groups of query heads.
        return_lse: also return the log-sum-exp.
        kernel_options: has no effect; it tunes torch's kernels.
        return_aux: torch's `AuxRequest`: also return an `AuxOutput` with the log-sum-exp.

    Returns:
        out [B, H, L, Dv], in the dtype of `query`. With `return_lse`, (out, lse): lse [B, H, L],
        differentiable, the natural logarithm of each row's sum of exponentials, float64 for float64
        and otherwise float32. A query that attends no key has zeros and an lse of -inf. With
        `return_aux`, (out, AuxOutput).

    Raises:
        TypeError: dtypes that differ or are not floating; a `score_mod` that returns no floating
            tensor, or a mask_mod that returns no bool one.
        ValueError: shapes that do not match; a `block_mask` for other sizes or another device; a
            function that raises, returns more than a scalar, or does not vectorise.
        NotImplementedError: tensors on another device; `AuxRequest(max_scores=True)`; a second
            derivative of a mask of documents without the log-sum-exp; a call under `torch.export`.

    >>> from torch.nn.attention.flex_attention import create_block_mask
    >>> q, k, v = (torch.randn(1, 4, 100, 16, requires_grad=True) for _ in range(3))
    >>> mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 100, 100, device="cpu")
    >>> slope = torch.tensor(0.1, requires_grad=True)
    >>> out = flex_attention(q, k, v, lambda s, b, h, q, kv: s + slope * (kv - q).sin(), mask)
    >>> out.sum().backward()
    >>> q.grad.shape, slope.grad.shape
    (torch.Size([1, 4, 100, 16]), torch.Size([]))
    """
    if torch.compiler.is_exporting():
        raise NotImplementedError(
            "flex_attention: expected a call outside of torch.export, got one inside; export "
            "flash_attention.attention where its options say the same"
        )
    attend = _attend_outside_graphs if torch.compiler.is_compiling() else _attend
    return attend(
        query,
        key,
        value,
        score_mod,
        block_mask,
        scale,
        enable_gqa,
        return_lse,
        return_aux,
    )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    block_mask: BlockMask | None,
    scale: float | None,
    enable_gqa: bool,
    return_lse: bool,
    return_aux: AuxRequest | None,
) -> Any:
    sizes = _checked_sizes(query, key, value, enable_gqa)
    with_lse = _with_lse(return_lse, return_aux)
    query, key, value = (_autocast(x) for x in (query, key, value))
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"flex_attention: expected {name} of {query.dtype}, the dtype of query, got "
                f"{tensor.dtype}"
            )
    scale = 1.0 / math.sqrt(max(query.size(3), 1)) if scale is None else float(scale)
    key, value = (x.expand(sizes.batch, -1, -1, -1) for x in (key, value))
    with torch.autocast("cpu", enabled=False):
        has_gradient = query.requires_grad or key.requires_grad
        call = _call(query, has_gradient, sizes, score_mod, block_mask, scale)
        lse: Tensor | None = None
        if isinstance(call, KernelCall):
            out, lse = call(query, key, value, with_lse)
        else:
            out, lse = attend_in_blocks(call, query, key, value)
    if return_aux is not None:
        return out, AuxOutput(lse=lse if with_lse else None)
    return (out, lse) if with_lse else out


# torch.compile leaves the call out of its graph: recording a function is nothing that it traces.
_attend_outside_graphs = _disable_dynamo(_attend)


def _with_lse(return_lse: bool, return_aux: AuxRequest | None) -> bool:
    """Whether the log-sum-exp is asked for."""
    if return_aux is None:
        return return_lse
    if return_lse:
        raise ValueError("flex_attention: expected return_lse or return_aux, got both")
    if return_aux.max_scores:
        raise NotImplementedError(
            "flex_attention: expected AuxRequest(lse=True), got max_scores=True, which is not "
            "computed on the CPU"
        )
    return return_aux.lse


def _call(
    query: Tensor,
    score_has_gradient: bool,
    sizes: Sizes,
    score_mod: ScoreMod | None,
    block_mask: BlockMask | None,
    scale: float,
) -> KernelCall | BlockCall:
    """How to compute it: by the kernels if they can."""
    if min(sizes.batch, sizes.heads, sizes.queries, sizes.keys) == 0:
        return KernelCall({"scale": scale})
    tiles = Tiles.whole(sizes) if block_mask is None else Tiles.of(block_mask, sizes)
    score = mask = None
    if score_mod is not None:
        dtype = compute_dtype(query.dtype)
        score = record("score_mod", score_mod, dtype, score_has_gradient)
    if block_mask is not None and block_mask.mask_mod is not noop_mask:
        mask = record("mask_mod", block_mask.mask_mod, None)
    found = kernel_call(tiles, score, mask, scale, query.dtype)
    if found is not None:
        return found
    return BlockCall(
        tiles,
        scale,
        None if score is None else BlockMod(score, differentiable=True),
        None if mask is None else BlockMod(mask, differentiable=False),
    )


def _autocast(tensor: Tensor) -> Tensor:
    """In the dtype of torch.autocast, where it is enabled, as torch casts them."""
    if torch.is_autocast_enabled("cpu") and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype("cpu"))
    return tensor


def _checked_sizes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> Sizes:
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"flex_attention: expected {name} to be a tensor, got {tensor!r}")
        if tensor.is_nested or tensor.layout != torch.strided:
            raise NotImplementedError(
                f"flex_attention: expected a dense {name}, got a nested or sparse tensor"
            )
        if tensor.device.type != "cpu":
            raise NotImplementedError(
                f"flex_attention: expected {name} on the CPU, got {tensor.device}; torch's own "
                "flex_attention has other devices"
            )
        if tensor.dim() != 4:
            raise ValueError(
                f"flex_attention: expected {name} [batch, heads, length, width], got "
                f"{list(tensor.shape)}"
            )
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"flex_attention: expected {name} of float32, float64, bfloat16 or float16, got "
                f"{tensor.dtype}"
            )
    batch, heads, queries, width = query.shape
    key_batch, key_heads, keys, _ = key.shape
    if key.size(3) != width:
        raise ValueError(
            f"flex_attention: expected key of the width {width} of query, got {list(key.shape)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"flex_attention: expected value of the batch, heads and length {list(key.shape[:3])} "
            f"of key, got {list(value.shape)}"
        )
    if key_batch not in (1, batch):
        raise ValueError(
            f"flex_attention: expected key of 1 or {batch} batches, as query, got {key_batch}"
        )
    if key_heads != heads and not (enable_gqa and key_heads > 0 and heads % key_heads == 0):
        more = "" if enable_gqa else "; enable_gqa=True shares heads of key and value"
        raise ValueError(
            f"flex_attention: expected key of {heads} heads, as query, or with enable_gqa of a "
            f"divisor, got {key_heads}{more}"
        )
    return Sizes(batch, heads, key_heads, queries, keys)
