"""Where DTensors of a call of attention may be sharded: along the batch, and along the heads.

Such shards are calls of their own, on their own batch elements and heads. Everything else, such as
a sharded length, is gathered first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

__all__ = ["BATCH", "HEADS", "Plan", "offset", "plan_of"]

BATCH, HEADS = "batch", "heads"


@dataclass(frozen=True)
class Plan:
    """What each dimension of the mesh divides: the batch, the heads, or nothing."""

    mesh: DeviceMesh
    divides: tuple[str | None, ...]

    def placements(
        self, batch: int | None, heads: int | None, missing: Placement | None = None
    ) -> tuple[Placement, ...]:
        """The placements of a tensor whose dimensions `batch` and `heads` are those of the call.

        `missing`: that of a tensor without the dimension that is divided; None: Replicate.
        """
        dims = {BATCH: batch, HEADS: heads}
        found: list[Placement] = []
        for what in self.divides:
            dim = None if what is None else dims[what]
            if what is None:
                found.append(Replicate())
            elif dim is None:
                found.append(Replicate() if missing is None else missing)
            else:
                found.append(Shard(dim))
        return tuple(found)


def _dimension(placement: Placement) -> int | None:
    # Not a subclass, which may interleave the shards.
    return placement.dim if type(placement) is Shard else None


def _heads_divide(processes: int, heads: int, others: Sequence[int]) -> bool:
    """Whether the heads of each process attend key and value heads of the same process.

    A single key or value head is on every process. As many as query heads are cut as those are.
    """
    return all(
        other in (1, heads) or (heads % processes == 0 and other % processes == 0)
        for other in others
    )


def plan_of(
    inputs: Sequence[DTensor], batch: int | None, heads: int | None, even: bool = False
) -> Plan:
    """The plan that keeps the shards of query, key and value where that is possible.

    Args:
        inputs: query, key and value, on one mesh.
        batch, heads: the dimensions of the batch and the heads, if there are any.
        even: whether all processes must have as many heads.
    """
    mesh = inputs[0].device_mesh
    counts = [1 if heads is None else x.size(heads) for x in inputs]
    processes = 1
    divides: list[str | None] = []
    for mesh_dim in range(mesh.ndim):
        dims = [_dimension(x.placements[mesh_dim]) for x in inputs]
        of_heads = processes * mesh.size(mesh_dim)
        if batch is not None and batch in dims:
            divides.append(BATCH)
        elif (
            heads is not None
            and heads in dims
            and _heads_divide(of_heads, counts[0], counts[1:])
            and not (even and counts[0] % of_heads != 0)
        ):
            processes = of_heads
            divides.append(HEADS)
        else:
            divides.append(None)
    return Plan(mesh, tuple(divides))


def offset(plan: Plan, what: str, size: int) -> int:
    """The index of this process's first batch element or head, of `size` in the whole tensor."""
    coordinate = plan.mesh.get_coordinate()
    assert coordinate is not None
    begin = 0
    for mesh_dim, divided in enumerate(plan.divides):
        if divided == what:
            # As DTensor cuts: chunks of the size that the first processes fill.
            chunk = -(-size // plan.mesh.size(mesh_dim))
            first = min(size, coordinate[mesh_dim] * chunk)
            begin += first
            size = min(chunk, size - first)
    return begin


def without_partial(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """`placements` of a gradient: that of a tensor of partial sums is replicated."""
    return tuple(Replicate() if isinstance(p, Partial) else p for p in placements)
