"""Attention by blocks as a function that autograd differentiates twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flash_attention.flex.blocks import BlockCall, run_backward, run_forward
from flash_attention.flex.second_derivative import run_second_derivative

__all__ = ["attend_in_blocks"]


def attend_in_blocks(
    call: BlockCall, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """out [B, H, L, Dv], of the dtype of query, and log-sum-exp [B, H, L].

    Raises:
        NotImplementedError: inside of a transform of `torch.func`, or of `torch.vmap`.
    """
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "flex_attention: expected a call outside of torch.func and torch.vmap, got one inside "
            "with a score_mod or block_mask that is computed by blocks; torch.autograd has two "
            "derivatives of it"
        )
    out, lse = _Blocks.apply(call, query, key, value, *call.inputs)
    return out, lse


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: BlockCall, query: Tensor, key: Tensor, value: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            out, lse = run_forward(call, query, key, value, inputs)
        ctx.call = call
        ctx.save_for_backward(query, key, value, out, lse, *inputs)
        return out.to(query.dtype), lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = gradients
        return None, *_BlocksBackward.apply(ctx.call, grad_out, grad_lse, *ctx.saved_tensors)


class _BlocksBackward(torch.autograd.Function):
    """The gradients as a function of what they are computed from.

    out and lse are among that, but the second derivative computes them anew, and so they have none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: BlockCall,
        grad_out: Tensor,
        grad_lse: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.call = call
        ctx.save_for_backward(grad_out, grad_lse, query, key, value, *inputs)
        main = (query, key, value, out, lse)
        with torch.autocast("cpu", enabled=False):
            return tuple(run_backward(call, grad_out, grad_lse, *main, inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse, query, key, value, *inputs = ctx.saved_tensors
        main = (query, key, value)
        with torch.autocast("cpu", enabled=False):
            found = run_second_derivative(ctx.call, cotangents, grad_out, grad_lse, *main, inputs)
        # out and lse are between the gradients of value and of the inputs.
        return None, *found[:5], None, None, *found[5:]
