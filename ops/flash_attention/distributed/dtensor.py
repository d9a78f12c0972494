"""Attention of DTensors: rules for `torch.ops.flash.*`, registered when this module is imported.

Each process calls the operator with its batch elements and heads, and gets the same bits as one
process does for them. Gradients of tensors that several processes share, such as the key of a
single head, are summed over these processes in the dtype that the kernels compute in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement

from flash_attention.distributed.dtensor_arguments import Arguments, distributed, summed
from flash_attention.distributed.placements import BATCH, HEADS, Plan, offset, plan_of

__all__: list[str] = []


def _check_outside_of_context_parallel() -> None:
    """Raises NotImplementedError inside of torch's `context_parallel`.

    Its DTensors are sharded along the length, in an order of their own, and each process expects
    its rows of the result.
    """
    handlers = getattr(DTensor._op_dispatcher, "_custom_op_handlers", {})
    if torch.ops.aten._scaled_dot_product_flash_attention.default in handlers:
        raise NotImplementedError(
            "flash::attention: expected DTensors outside of torch's context_parallel, got a call "
            "inside; flash_attention.distributed.context_parallel_attention divides sequences"
        )


class _Attention:
    """The tensors of a call of attention: which of their dimensions are batch and heads."""

    def __init__(self, arguments: Arguments) -> None:
        _check_outside_of_context_parallel()
        self.arguments = arguments
        arguments.check(torch.ops.flash.attention)
        self.has_heads = arguments.dim("query") == 4
        inputs = [arguments.values[name] for name in ("query", "key", "value")]
        self.plan = plan_of(inputs, 0, 1 if self.has_heads else None)

    def _head_dim(self, name: str, dim: int) -> int | None:
        """`dim` if the tensor has heads to divide: a single key or value head is shared."""
        return dim if self.has_heads and self.arguments.size(name, dim) > 1 else None

    def _broadcast(self, name: str, rank: int) -> tuple[int | None, int | None]:
        """The dimensions of a tensor that broadcasts to one with so many dimensions."""
        x = self.arguments.values[name]
        missing = rank - x.dim()
        batch = 0 if missing <= 0 and x.size(0) > 1 else None
        heads = 1 - missing if self.has_heads and missing <= 1 else None
        return batch, heads if heads is not None and x.size(heads) > 1 else None

    def dims(self, name: str) -> tuple[int | None, int | None]:
        """The dimensions of batch and heads of an argument."""
        heads = 1 if self.has_heads else None
        if name in ("query", "out", "grad_out", "grad_lse"):
            return 0, heads
        if name in ("key", "value"):
            return 0, self._head_dim(name, 1)
        if name == "row_stats":
            return 1, 2 if self.has_heads else None
        if name in ("alibi_slopes", "sinks"):
            return (0, heads) if self.arguments.dim(name) == 2 else (None, 0)
        if name == "bias":
            return self._broadcast(name, 4 if self.has_heads else 3)
        if name == "query_positions":
            return self._broadcast(name, 3 if self.has_heads else 2)
        return None, None

    def placements(self, name: str, missing: Placement | None = None) -> tuple[Placement, ...]:
        return self.plan.placements(*self.dims(name), missing)

    def locals(self) -> dict[str, Any]:
        """The arguments of this process's own call."""
        return {
            name: self.arguments.local(name, self.placements(name)) if isinstance(x, Tensor) else x
            for name, x in self.arguments.values.items()
        }

    def place(self) -> list[int]:
        """Where this process's call is in the whole one, for the dropout mask."""
        size = self.arguments.size
        heads = size("query", 1) if self.has_heads else 1
        first_head = offset(self.plan, HEADS, heads) if self.has_heads else 0
        return [offset(self.plan, BATCH, size("query", 0)), first_head, 0, 0, heads]

    def rows(self, *more: int) -> tuple[int, ...]:
        """[B, H, L] (or [B, L]) of the whole call, and `more`."""
        return (*self.arguments.values["query"].shape[:-1], *more)

    def wrap(self, local: Tensor, like: str, shape: Sequence[int]) -> DTensor:
        return distributed(local, self.plan, self.placements(like), shape)


def _common_seed(plan: Plan, dropout: float) -> Tensor:
    """The seed that the first process of the mesh draws; all draw one."""
    nothing = torch.empty(0, 1, 1)
    seed = torch.ops.flash._forward(nothing, nothing, nothing, dropout=dropout)[2]
    for mesh_dim in range(plan.mesh.ndim):
        if plan.mesh.size(mesh_dim) > 1:
            dist.broadcast(seed, group=plan.mesh.get_group(mesh_dim), group_src=0)
    return seed


def _forward_with_dropout(call: _Attention, given: dict[str, Any]) -> tuple[Tensor, ...]:
    """out, row_stats and seed of this process's part of a call."""
    seed = _common_seed(call.plan, given["dropout"])
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    out, row_stats = torch.ops.flash._forward_part(*tensors, seed, call.place(), True, **given)
    return out, row_stats, seed


@torch.library.register_torch_dispatch("flash::attention", DTensor)
@torch.no_grad()
def _attention(cls: type, func: Any, types: Any, args: Any, kwargs: Any = None) -> DTensor:
    call = _Attention(Arguments(func, args, kwargs))
    given = call.locals()
    dtype = given["query"].dtype
    if given["dropout"] > 0:
        out = _forward_with_dropout(call, given)[0].to(dtype)
    else:
        out = func(**given)
    return call.wrap(out, "out", call.rows(out.size(-1)))


@torch.library.register_torch_dispatch("flash::attention_with_lse", DTensor)
@torch.no_grad()
def _attention_with_lse(
    cls: type, func: Any, types: Any, args: Any, kwargs: Any = None
) -> tuple[DTensor, DTensor]:
    call = _Attention(Arguments(func, args, kwargs))
    given = call.locals()
    dtype = given["query"].dtype
    if given["dropout"] > 0:
        out, (row_max, row_sum), _ = _forward_with_dropout(call, given)
        out, lse = out.to(dtype), row_sum.log().add_(row_max)
    else:
        out, lse = func(**given)
    return (
        call.wrap(out, "out", call.rows(out.size(-1))),
        call.wrap(lse, "grad_lse", call.rows()),
    )


@torch.library.register_torch_dispatch("flash::_forward", DTensor)
@torch.no_grad()
def _forward(
    cls: type, func: Any, types: Any, args: Any, kwargs: Any = None
) -> tuple[DTensor, DTensor, DTensor]:
    call = _Attention(Arguments(func, args, kwargs))
    given = call.locals()
    if given["dropout"] > 0:
        out, row_stats, seed = _forward_with_dropout(call, given)
    else:
        out, row_stats, seed = func(**given)
    return (
        call.wrap(out, "out", call.rows(out.size(-1))),
        call.wrap(row_stats, "row_stats", (2, *call.rows())),
        call.wrap(seed, "seed", seed.shape),
    )


@torch.library.register_torch_dispatch("flash::_backward", DTensor)
@torch.no_grad()
def _backward(
    cls: type, func: Any, types: Any, args: Any, kwargs: Any = None
) -> tuple[DTensor, ...]:
    call = _Attention(Arguments(func, args, kwargs))
    given = call.locals()
    inputs = ("query", "key", "value", "bias", "alibi_slopes", "sinks")
    terms = {
        name: call.placements(name, Partial())
        for name, needed in zip(inputs, given["needed"], strict=True)
        if needed
    }
    for name in inputs[3:]:
        # Their gradients are of their dtype, and terms of a sum must not be rounded to 16 bits.
        if any(isinstance(p, Partial) for p in terms.get(name, ())):
            given[name] = given[name].to(given["row_stats"].dtype)
    found = torch.ops.flash._backward_part(**given, place=call.place())
    results = []
    for name, gradient in zip(inputs, found, strict=True):
        if name in terms:
            input = call.arguments.values[name]
            results.append(summed(gradient, input, call.plan, terms[name]))
        else:
            results.append(call.wrap(gradient, "seed", gradient.shape))
    return tuple(results)
