"""A C++ model on DTensors: each process computes windows of the batch, with whole parameters.

The layers of a model read the memory of their tensors, so that a sharded parameter is gathered
before they run, and its gradient goes back to the shards. What is divided is the batch: windows
that are sharded along it stay where they are, and everything else is gathered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

__all__ = ["forward", "whole"]

Run = Callable[[list[Tensor], list[Tensor | None]], Tensor]
"""The C++ model on plain parameters and plain windows."""


@dataclass(frozen=True)
class _Division:
    """Which dimensions of the mesh divide the batch."""

    mesh: DeviceMesh
    divides: tuple[bool, ...]

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Of windows and of the output."""
        return tuple(Shard(0) if divided else Replicate() for divided in self.divides)

    @property
    def of_gradients(self) -> tuple[Placement, ...]:
        """Of the gradient of a whole parameter, of which each process has a term."""
        return tuple(Partial() if divided else Replicate() for divided in self.divides)

    def index(self) -> int:
        """The number of this process's part of the batch."""
        coordinate = self.mesh.get_coordinate()
        assert coordinate is not None
        found = 0
        for dim, divided in enumerate(self.divides):
            if divided:
                found = found * self.mesh.size(dim) + coordinate[dim]
        return found


def _mesh_of(name: str, tensors: Iterable[Tensor | None]) -> DeviceMesh:
    mesh: DeviceMesh | None = None
    for x in tensors:
        if isinstance(x, DTensor):
            if mesh is not None and x.device_mesh != mesh:
                raise ValueError(
                    f"{name}: expected all DTensors on one mesh, got {mesh} and {x.device_mesh}"
                )
            mesh = x.device_mesh
    assert mesh is not None
    if mesh.get_coordinate() is None:
        raise RuntimeError(
            f"{name}: expected a process of the mesh {mesh}, got process {dist.get_rank()}, which "
            "has no part of the DTensors"
        )
    return mesh


def _division(
    name: str, mesh: DeviceMesh, windows: Sequence[Tensor | None], whole_batch: bool
) -> _Division:
    """The shards of the windows along the batch, if each process has a window of each."""
    given = [x for x in windows if x is not None]
    batches = {x.size(0) if x.dim() > 0 else 1 for x in given}
    if len(batches) > 1:
        raise ValueError(
            f"{name}: expected every tensor of windows_batch with the same number of windows, got "
            f"{[list(x.shape) for x in given]}"
        )
    smallest = batches.pop() if batches else 0
    divides = []
    for dim in range(mesh.ndim):
        placements = [x.placements[dim] for x in given if isinstance(x, DTensor)]
        part = -(-smallest // mesh.size(dim))
        last = smallest - part * (mesh.size(dim) - 1)
        divided = not whole_batch and any(type(p) is Shard and p.dim == 0 for p in placements)
        divides.append(divided and last > 0)
        smallest = last if divides[-1] else smallest
    return _Division(mesh, tuple(divides))


class _Shared(torch.autograd.Function):
    """Plain parameters, the same on every process: the sum of all processes' gradients is theirs.

    One message for all of them.
    """

    @staticmethod
    def forward(ctx: Any, division: _Division, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.division = division
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_summed(ctx.division, grads)


def _summed(division: _Division, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums over the processes that have other windows, as new tensors."""
    present = [g for g in grads if g is not None]
    if not present:
        return list(grads)
    real = [torch.view_as_real(g) if g.is_complex() else g for g in present]
    message = torch.cat([g.reshape(-1) for g in real])
    for dim, divided in enumerate(division.divides):
        if divided:
            dist.all_reduce(message, group=division.mesh.get_group(dim))
    parts = message.split([g.numel() for g in real])
    sums = iter(
        torch.view_as_complex(part.view(r.shape)) if g.is_complex() else part.view(r.shape)
        for part, r, g in zip(parts, real, present, strict=True)
    )
    return [None if g is None else next(sums) for g in grads]


def _parameters(tensors: Sequence[Tensor], division: _Division) -> list[Tensor]:
    """Whole plain tensors, whose gradients are summed over the processes with other windows."""
    plain = [i for i, x in enumerate(tensors) if not isinstance(x, DTensor) and x.requires_grad]
    found = list(tensors)
    if plain and any(division.divides):
        shared = _Shared.apply(division, *(tensors[i] for i in plain))
        for i, x in zip(plain, shared, strict=True):
            found[i] = x
    for i, x in enumerate(tensors):
        if isinstance(x, DTensor):
            found[i] = x.full_tensor(grad_placements=division.of_gradients)
    return found


def _window(x: Tensor | None, division: _Division) -> Tensor | None:
    """The windows of this process."""
    if x is None:
        return None
    if not isinstance(x, DTensor):
        everywhere = [Replicate()] * division.mesh.ndim
        x = DTensor.from_local(x, division.mesh, everywhere, run_check=False)
    return x.redistribute(division.mesh, division.placements).to_local()


@contextlib.contextmanager
def _random_numbers(division: _Division, training: bool) -> Iterator[None]:
    """Continues the generator of the first process on all of them.

    In training, processes with other windows draw other numbers.
    """
    state = torch.get_rng_state()
    for dim in range(division.mesh.ndim):
        if division.mesh.size(dim) > 1:
            dist.broadcast(state, group=division.mesh.get_group(dim), group_src=0)
    torch.set_rng_state(state)
    if not (training and any(division.divides)):
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + division.index())
        yield


def whole(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Plain tensors with all elements; every process of the mesh must call it."""
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in tensors]


def forward(
    run: Run,
    name: str,
    tensors: Sequence[Tensor],
    windows: Sequence[Tensor | None],
    *,
    training: bool,
    draws: bool,
    whole_batch: bool,
) -> Tensor:
    """The output: a DTensor if windows are, sharded along the batch as they are.

    Args:
        run: the model.
        name: of the model, for messages.
        tensors: parameters and buffers. Plain ones are the same on every process.
        windows: plain ones are the same on every process.
        training: the mode.
        draws: whether the model draws random numbers.
        whole_batch: whether a window's result depends on the others, so that every process has to
            compute all of them.

    Raises:
        ValueError: DTensors on several meshes, or windows of several batches.
        RuntimeError: a process outside of the mesh.
    """
    mesh = _mesh_of(name, (*tensors, *windows))
    division = _division(name, mesh, windows, whole_batch)
    local = [_window(x, division) for x in windows]
    with _random_numbers(division, training) if draws else contextlib.nullcontext():
        out = run(_parameters(tensors, division), local)
    given = [x for x in windows if isinstance(x, DTensor)]
    if not given:
        return out
    shape = torch.Size((given[0].size(0), *out.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        out.contiguous(), mesh, division.placements, run_check=False, shape=shape, stride=stride
    )
