"""A drop-in for torch's `scaled_dot_product_attention`, and a switch to replace torch's with it."""

from __future__ import annotations

import threading
from types import TracebackType

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

__all__ = ["SdpaReplacement", "replace_sdpa", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, computed by `attention`.

    The same arguments with the same meaning, in O(N) memory for all of them, including dropout, a
    mask that requires a gradient, and a value whose width differs from that of query.

    Args:
        query: [.., H, L, D] of two or more dimensions, floating. If it is not on the CPU, torch's
            function computes the call.
        key: [.., Hk, S, D]; Hk is H or 1, or with `enable_gqa` any divisor of H.
        value: [.., Hv, S, Dv]; Hv is H or 1, or with `enable_gqa` any divisor of H. The dimensions
            before the heads broadcast.
        attn_mask: broadcasts to [.., H, L, S]. bool: True = attend. Floating: added to the scores,
            and differentiable. Or a `CausalBias` of `torch.nn.attention.bias` for L and S; one
            that is aligned to the lower right takes L S bytes where L and S differ.
        dropout_p: probability in [0, 1] of dropping a weight, in training or not, as in torch.
        is_causal: query i attends keys 0 ... i (top-left alignment), unlike `causal` of
            `attention`. Not together with `attn_mask`.
        scale: factor on the scores; None means 1/sqrt(D).
        enable_gqa: heads of key and value are shared by groups of query heads.

    Returns:
        [.., H, L, Dv]. A query whose keys are all masked gives zeros. Dropout draws other random
        numbers than torch's.

    Raises:
        TypeError, ValueError, NotImplementedError: as `attention`. Unlike torch, which reads past
            the end of the shorter one, it requires key and value of the same length.

    >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
    >>> expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.testing.assert_close(scaled_dot_product_attention(q, k, v, is_causal=True), expected)
    """
    if isinstance(attn_mask, CausalBias):
        _check_causal_bias(attn_mask, query, key, is_causal)
        # Its elements are not initialized: it is a mask only for torch's own function.
        is_causal = attn_mask.variant == CausalVariant.UPPER_LEFT or query.size(-2) == key.size(-2)
        attn_mask = None if is_causal else _lower_right(query, key)
    return torch.ops.flash.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _check_causal_bias(bias: CausalBias, query: Tensor, key: Tensor, is_causal: bool) -> None:
    if is_causal:
        raise ValueError(
            "scaled_dot_product_attention: expected attn_mask or is_causal, got a CausalBias and "
            "is_causal=True; leave out is_causal"
        )
    lengths = (query.size(-2), key.size(-2))
    if lengths != (bias.seq_len_q, bias.seq_len_kv):
        raise ValueError(
            f"scaled_dot_product_attention: expected a CausalBias for {lengths[0]} queries and "
            f"{lengths[1]} keys, got one for {bias.seq_len_q} and {bias.seq_len_kv}; create one "
            "for these lengths"
        )


def _lower_right(query: Tensor, key: Tensor) -> Tensor:
    """bool [L, S]: the causal mask whose last query attends the last key."""
    queries, keys = query.size(-2), key.size(-2)
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)


class SdpaReplacement:
    """The result of `replace_sdpa`. The `with` block or `undo` ends the replacement."""

    _lock = threading.Lock()
    _active = 0
    _fastpath = True

    def __init__(self) -> None:
        cls = SdpaReplacement
        with cls._lock:
            if cls._active == 0:
                # For inference, nn.MultiheadAttention and nn.TransformerEncoder have fused kernels,
                # which would bypass the operator.
                cls._fastpath = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            cls._active += 1
            torch.ops.flash._replace_sdpa(True)
        self._undone = False

    def undo(self) -> None:
        """Restore torch's function, unless another replacement is still in force."""
        cls = SdpaReplacement
        with cls._lock:
            if self._undone:
                return
            self._undone = True
            torch.ops.flash._replace_sdpa(False)
            cls._active -= 1
            if cls._active == 0:
                torch.backends.mha.set_fastpath_enabled(cls._fastpath)

    def __enter__(self) -> SdpaReplacement:
        if self._undone:
            raise RuntimeError("replace_sdpa: expected a replacement in force, got one undone")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def replace_sdpa() -> SdpaReplacement:
    """Make every model in this process use the operator, without a change to its code.

    From then on, `torch.nn.functional.scaled_dot_product_attention` of CPU tensors is
    `scaled_dot_product_attention` of this module, in every thread and under any name that it was
    imported as, and also in `nn.MultiheadAttention` and `nn.TransformerEncoder`, whose fused
    kernels for inference are disabled meanwhile. Calls that it does not support (nested and sparse
    tensors, forward-mode derivatives, transforms of `torch.func`) still go to torch's function.

    Returns:
        An object that undoes it at the end of its `with` block or by its `undo()`:

            with flash_attention.replace_sdpa():
                model(batch)

            flash_attention.replace_sdpa()  # for the rest of the process

    >>> q, k, v = (torch.randn(2, 8, 100, 64) for _ in range(3))
    >>> with replace_sdpa():
    ...     out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> torch.equal(out, scaled_dot_product_attention(q, k, v))
    True
    """
    return SdpaReplacement()
