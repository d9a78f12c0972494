"""The arguments of an operator on DTensors, and its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate

from flash_attention.distributed.placements import Plan, without_partial

__all__ = ["Arguments", "distributed", "summed"]

# Made of indices, which every process computes alike.
INDICES = ("query_positions", "cu_seqlens_q", "cu_seqlens_k", "seed")


class Arguments:
    """The arguments of an operator by name, as DTensors on one mesh.

    Raises:
        TypeError: some tensors are DTensors and others are not.
        ValueError: they are on several meshes.
        RuntimeError: this process is not in the mesh.
    """

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> None:
        schema = func._schema
        self.name = schema.name
        self.values: dict[str, Any] = {
            a.name: a.default_value for a in schema.arguments if a.has_default_value()
        }
        self.values |= dict(zip((a.name for a in schema.arguments), args, strict=False))
        self.values |= kwargs or {}
        tensors = {n: x for n, x in self.values.items() if isinstance(x, Tensor)}
        distributed = {n: x for n, x in tensors.items() if isinstance(x, DTensor)}
        first = next(iter(distributed))
        self.mesh = distributed[first].device_mesh
        for name, x in tensors.items():
            if isinstance(x, DTensor):
                if x.device_mesh != self.mesh:
                    raise ValueError(
                        f"{self.name}: expected all DTensors on one mesh, got {first} on "
                        f"{self.mesh} and {name} on {x.device_mesh}"
                    )
            elif name not in INDICES:
                raise TypeError(
                    f"{self.name}: expected every tensor as a DTensor, as {first} is, got {name} "
                    "as a plain tensor; use distribute_tensor, or DTensor.from_local with "
                    "Replicate()"
                )
        if self.mesh.get_coordinate() is None:
            raise RuntimeError(
                f"{self.name}: expected a process of the mesh {self.mesh}, got process "
                f"{dist.get_rank()}, which has no part of the DTensors"
            )

    def check(self, operator: Any) -> None:
        """Raises what `operator` raises for the whole tensors, so that it does on every process."""
        names = [a.name for a in operator.default._schema.arguments]
        given = {name: self.values[name] for name in names}
        operator(
            **{
                name: torch.empty(x.shape, dtype=x.dtype, device="meta")
                if isinstance(x, Tensor)
                else x
                for name, x in given.items()
            }
        )

    def local(self, name: str, placements: Sequence[Placement]) -> Tensor:
        """This process's part of a tensor that is placed so."""
        x = self.values[name]
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        return x.redistribute(self.mesh, placements).to_local()

    def dim(self, name: str) -> int:
        return self.values[name].dim()

    def size(self, name: str, dim: int) -> int:
        return self.values[name].size(dim)


def _whole_strides(local: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor of `shape` whose dimensions are in the order of those of `local`."""
    order = sorted(range(local.dim()), key=lambda dim: local.stride(dim), reverse=True)
    strides, step = [0] * local.dim(), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(1, shape[dim])
    return tuple(strides)


def distributed(
    local: Tensor, plan: Plan, placements: Sequence[Placement], shape: Sequence[int]
) -> DTensor:
    return DTensor.from_local(
        local,
        plan.mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=_whole_strides(local, shape),
    )


def summed(local: Tensor, input: DTensor, plan: Plan, placements: Sequence[Placement]) -> DTensor:
    """A gradient, of which processes that share the input have terms, placed as the input is."""
    gradient = distributed(local, plan, placements, input.shape)
    gradient = gradient.redistribute(plan.mesh, without_partial(input.placements))
    rounded = gradient.to_local().to(input.dtype)
    return distributed(rounded, plan, gradient.placements, input.shape)
