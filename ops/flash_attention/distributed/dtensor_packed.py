"""Packed attention of DTensors: rules for `torch.ops.flash.varlen_attention`.

Only heads are divided, since the sequences of a batch are rows of one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement

from flash_attention.distributed.dtensor_arguments import Arguments, distributed, summed
from flash_attention.distributed.placements import plan_of

__all__: list[str] = []


class _Packed:
    """The tensors of a call: which of their dimensions are heads."""

    def __init__(self, func: Any, args: Any, kwargs: Any) -> None:
        self.arguments = Arguments(func, args, kwargs)
        self.arguments.check(torch.ops.flash.varlen_attention)
        values = self.arguments.values
        if values["dropout"] > 0 and self.arguments.mesh.size() > 1:
            raise NotImplementedError(
                f"{self.arguments.name}: expected no dropout with DTensors, got dropout "
                f"{values['dropout']}; attention of each sequence has it"
            )
        # What the backward reads of row_stats is divided only if all have as many heads.
        self.plan = plan_of([values[name] for name in ("query", "key", "value")], None, 1, True)

    def _heads(self, name: str) -> int | None:
        if name in ("query", "out", "grad_out"):
            return 1
        if name in ("key", "value"):
            return 1 if self.arguments.size(name, 1) > 1 else None
        if name == "row_stats":  # [2, rows and heads]: read only by the backward of this process
            return 1
        if name in ("alibi_slopes", "sinks"):
            return self.arguments.dim(name) - 1
        return None

    def placements(self, name: str, missing: Placement | None = None) -> tuple[Placement, ...]:
        return self.plan.placements(None, self._heads(name), missing)

    def locals(self) -> dict[str, Any]:
        """The arguments of this process's own call."""
        return {
            name: self.arguments.local(name, self.placements(name)) if isinstance(x, Tensor) else x
            for name, x in self.arguments.values.items()
        }

    def wrap(self, local: Tensor, like: str, shape: Sequence[int]) -> DTensor:
        return distributed(local, self.plan, self.placements(like), shape)

    def out(self, local: Tensor) -> DTensor:
        shape = (*self.arguments.values["query"].shape[:2], local.size(2))
        return self.wrap(local, "out", shape)


@torch.library.register_torch_dispatch("flash::varlen_attention", DTensor)
@torch.no_grad()
def _varlen_attention(cls: type, func: Any, types: Any, args: Any, kwargs: Any = None) -> DTensor:
    call = _Packed(func, args, kwargs)
    return call.out(func(**call.locals()))


@torch.library.register_torch_dispatch("flash::_varlen_forward", DTensor)
@torch.no_grad()
def _varlen_forward(
    cls: type, func: Any, types: Any, args: Any, kwargs: Any = None
) -> tuple[DTensor, DTensor, DTensor]:
    call = _Packed(func, args, kwargs)
    out, row_stats, seed = func(**call.locals())
    rows, heads = call.arguments.values["query"].shape[:2]
    return (
        call.out(out),
        call.wrap(row_stats, "row_stats", (2, rows * heads)),
        call.wrap(seed, "seed", seed.shape),
    )


@torch.library.register_torch_dispatch("flash::_varlen_backward", DTensor)
@torch.no_grad()
def _varlen_backward(
    cls: type, func: Any, types: Any, args: Any, kwargs: Any = None
) -> tuple[DTensor, ...]:
    call = _Packed(func, args, kwargs)
    given = call.locals()
    found = func(**given)
    inputs = ("query", "key", "value", "alibi_slopes", "sinks")
    results = []
    for name, gradient, needed in zip(inputs, found, given["needed"], strict=True):
        if needed:
            terms = call.placements(name, Partial())
            results.append(summed(gradient, call.arguments.values[name], call.plan, terms))
        else:
            results.append(call.wrap(gradient, "seed", gradient.shape))
    return tuple(results)
