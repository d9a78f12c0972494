"""The attention function: what a model of transformers asks for, as options of `attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flash_attention._packed import packed_attention
from flash_attention.transformers.pattern import Pattern, PatternMask

__all__ = ["attention_forward"]

FUNCTION = "flash_attention.transformers"
# Arguments of other implementations that would change the result.
NOT_SUPPORTED = ("head_mask", "layer_head_mask", "block_table", "block_indices")


def _check_supported(others: dict[str, Any]) -> None:
    if others.get("output_attentions"):
        raise NotImplementedError(
            f"{FUNCTION}: expected output_attentions=False, got True; the weights are never stored "
            'here, attn_implementation="eager" returns them'
        )
    for name in NOT_SUPPORTED:
        if others.get(name) is not None:
            raise NotImplementedError(
                f"{FUNCTION}: expected no {name}, got one; use another attn_implementation"
            )


def _beside(query: Tensor, option: Tensor) -> Tensor:
    """`option` in a dtype that the operator takes with that of `query`."""
    narrow = query.dtype in (torch.bfloat16, torch.float16)
    if option.dtype == query.dtype or (narrow and option.dtype == torch.float32):
        return option
    return option.to(query.dtype)


def _positions(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    is_causal: bool | None,
    sliding_window: int | None,
) -> dict[str, Any]:
    """Causality and window of a call without a mask."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    queries, keys = query.size(2), key.size(2)
    if causal and queries not in (1, keys):
        raise ValueError(
            f"{FUNCTION}: expected a mask for {queries} causal queries over {keys} keys, got none: "
            "their positions are unknown"
        )
    if sliding_window is None or sliding_window >= keys:
        return {"causal": causal}
    if not causal:
        raise ValueError(
            f"{FUNCTION}: expected a mask with sliding_window={sliding_window} and "
            "is_causal=False, got none"
        )
    return {"causal": True, "window": (sliding_window - 1, 0)}


def _checked(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask with elements, [B or 1, H or 1, L or 1, S]: the operator checks all but the last."""
    if mask.dim() != 4 or mask.size(3) != key.size(2):
        raise ValueError(
            f"{FUNCTION}: expected a mask [batch, heads, queries, keys] of {key.size(2)} keys, got "
            f"shape {list(mask.shape)}"
        )
    return _beside(query, mask) if mask.is_floating_point() else mask


def _selected(mask: Tensor | None, indices: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """`mask` with elements, where a query attends only those of its keys that are in `indices`."""
    expected = (query.size(0), query.size(2))
    if mask is None or mask.size(-1) != key.size(2):
        raise ValueError(
            f"{FUNCTION}: expected a mask of {key.size(2)} keys beside indices, got "
            f"{None if mask is None else list(mask.shape)}; pass the mask of the model"
        )
    if indices.dim() != 3 or indices.shape[:2] != expected or indices.is_floating_point():
        raise ValueError(
            f"{FUNCTION}: expected indices [{expected[0]}, {expected[1]}, any] of integers, got "
            f"{list(indices.shape)} of {indices.dtype}"
        )
    selected = torch.zeros(*expected, key.size(2), dtype=torch.bool)
    selected = selected.scatter(-1, indices.long(), True).unsqueeze(1)
    if isinstance(mask, PatternMask):
        mask = mask.elements()
    if mask.dtype == torch.bool:
        return mask & selected
    return mask.masked_fill(~selected, torch.finfo(mask.dtype).min)


def _with_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A mask, bool (True = attend) or floating, on top of a floating bias."""
    if bias.stride(-1) != 1:  # as in T5, where it is a view of [L, S, H]
        bias = bias.contiguous()
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _offsets(
    pattern: Pattern | None, cu_seq_lens_q: Tensor | None, cu_seq_lens_k: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Where the packed sequences of queries and keys begin, or None if there is one in each row."""
    from_positions = None if pattern is None else pattern.offsets
    if cu_seq_lens_q is None and cu_seq_lens_k is None:
        return None if from_positions is None else (from_positions, from_positions)
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise ValueError(f"{FUNCTION}: expected cu_seq_lens_q and cu_seq_lens_k, got one of them")
    if from_positions is not None and not torch.equal(from_positions, cu_seq_lens_q.long()):
        raise ValueError(
            f"{FUNCTION}: expected position_ids and cu_seq_lens_q of the same sequences, got some "
            f"that begin at {from_positions.tolist()} and at {cu_seq_lens_q.tolist()}"
        )
    return cu_seq_lens_q, cu_seq_lens_k


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    indices: Tensor | None = None,
    sinks: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as the `AttentionInterface` of transformers calls it, by `attention`.

    Args:
        module: the layer; its `is_causal` counts if the argument is None.
        query: [B, H, L, D] on the CPU, floating.
        key: [B, Hk, S, D]; H is a multiple of Hk, and no head is repeated.
        value: [B, Hv, S, Dv].
        attention_mask: from `attention_mask` of this package; or [B or 1, H or 1, L or 1, S], bool
            (True = attend) or floating (added to the scores). It is complete: `is_causal` and
            `sliding_window` do not count beside it.
        dropout: probability of dropping a weight; models pass 0 unless they train.
        scaling: factor on the scores; None means 1/sqrt(D).
        is_causal: of a call without a mask, where L is 1 or S.
        sliding_window: of a causal call without a mask: the keys that a query attends.
        softcap: of the scores, as in Gemma 2.
        s_aux: [H], attention sinks, as in gpt-oss; differentiable.
        position_bias: broadcasts to [B, H, L, S], added to the scores, as in T5; differentiable.
        cu_seq_lens_q, cu_seq_lens_k: int32 or int64 [N + 1], where N packed sequences begin among
            the B * L queries and the B * S keys.
        indices: int [B, L, K], the only keys that a query attends, if the mask has them too, as in
            DeepSeek V3.2.
        sinks: [B, H, L, 1], an attention sink of each query, as in Inkling 2; differentiable.
        others: what models pass on to implementations of other kinds.

    Returns:
        [B, L, H, Dv], contiguous, in the dtype of `query`; and None, for the weights.

    Raises:
        NotImplementedError: weights are asked for, or an option that is not supported; tensors on
            another device.
        TypeError, ValueError: as `attention`; or positions that are unknown or contradict each
            other.
    """
    _check_supported(others)
    options: dict[str, Any] = {
        "scale": scaling,
        "softcap": softcap or 0.0,
        "sinks": None if s_aux is None else _beside(query, s_aux),
        "dropout": dropout,
    }
    mask, pattern = attention_mask, None
    if indices is not None:
        mask = _selected(attention_mask, indices, query, key)
    elif isinstance(attention_mask, PatternMask):
        pattern = attention_mask.pattern
        mask = attention_mask.elements() if pattern is None else pattern.key_mask
    if pattern is not None and (pattern.queries, pattern.keys) != (query.size(2), key.size(2)):
        raise ValueError(
            f"{FUNCTION}: expected a mask of {query.size(2)} queries and {key.size(2)} keys, got "
            f"one of {pattern.queries} and {pattern.keys}"
        )

    offsets = _offsets(pattern, cu_seq_lens_q, cu_seq_lens_k)
    if offsets is not None:
        if mask is not None or position_bias is not None or sinks is not None:
            raise NotImplementedError(
                f"{FUNCTION}: expected packed sequences without padding, other masks, "
                "position_bias and sinks of each query, got one of these; use "
                'attn_implementation="eager"'
            )
        if pattern is None:
            options |= _positions(module, query, key, is_causal, sliding_window)
        else:
            options |= {"causal": pattern.window[1] == 0, "window": pattern.window}
        return packed_attention(query, key, value, *offsets, options), None

    if pattern is not None:
        options |= pattern.position_options
        if pattern.reachable < pattern.keys:  # a static cache, of which the rest is not written yet
            key, value = (x[:, :, : pattern.reachable] for x in (key, value))
            if position_bias is not None:
                position_bias = position_bias[..., : pattern.reachable]
    elif mask is None:
        options |= _positions(module, query, key, is_causal, sliding_window)
    else:
        mask = _checked(mask, query, key)
    if position_bias is not None:
        mask = _with_mask(_beside(query, position_bias), mask)
    if sinks is None:
        out = torch.ops.flash.attention(query, key, value, bias=mask, **options)
    else:
        out, lse = torch.ops.flash.attention_with_lse(query, key, value, bias=mask, **options)
        if sinks.shape != (*lse.shape, 1):
            raise ValueError(
                f"{FUNCTION}: expected sinks {[*lse.shape, 1]}, got {list(sinks.shape)}"
            )
        # The sink takes its share: exp(lse) / (exp(lse) + exp(sink)) of the weight is left.
        out = (out * torch.sigmoid(lse.unsqueeze(-1) - sinks)).to(out.dtype)
    return out.transpose(1, 2).contiguous(), None
