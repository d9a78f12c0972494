"""Cutting a sequence into the rows of each process, and joining them."""

from __future__ import annotations

import operator
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from flash_attention.distributed.agreement import agree
from flash_attention.distributed.communication import GRADIENT_TAG, Channel
from flash_attention.distributed.schedule import Layout, contiguous, even_lengths, zigzag

__all__ = ["LoadBalance", "check_load_balance", "layout_of", "shard_sequence", "unshard_sequence"]

LoadBalance = Literal["zigzag"]


def check_load_balance(what: str, load_balance: str | None) -> None:
    """Raises ValueError for one that does not exist."""
    if load_balance is not None and load_balance not in get_args(LoadBalance):
        raise ValueError(f"{what}: expected load_balance as 'zigzag' or None, got {load_balance!r}")


def layout_of(what: str, lengths: list[int], load_balance: str | None) -> Layout:
    """The layout in which process r has lengths[r] rows.

    Raises:
        ValueError: "zigzag" with other lengths than those of `shard_sequence`.
    """
    if load_balance is None:
        return contiguous(lengths)
    layout = zigzag(sum(lengths), len(lengths))
    expected = [layout.rows(process) for process in range(len(lengths))]
    if lengths != expected:
        raise ValueError(
            f"{what}: expected the rows that shard_sequence gives with load_balance='zigzag', "
            f"{expected} of {sum(lengths)} on processes 0 to {len(lengths) - 1}, got {lengths}"
        )
    return layout


def _dimension(what: str, tensor: Tensor, dim: int) -> int:
    if not isinstance(tensor, Tensor) or isinstance(tensor, DTensor):
        raise TypeError(f"{what}: expected a plain tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: expected a dense tensor, got {tensor.layout}")
    try:
        dim = operator.index(dim)
    except TypeError:
        raise TypeError(f"{what}: expected dim as an int, got {dim!r}") from None
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(
            f"{what}: expected dim as one of the {tensor.dim()} dimensions of the tensor, got {dim}"
        )
    return dim % tensor.dim()


def shard_sequence(
    tensor: Tensor,
    dim: int,
    *,
    group: dist.ProcessGroup | None = None,
    load_balance: LoadBalance | None = None,
) -> Tensor:
    """The rows of this process, of a tensor that every process has. Sends nothing.

    Args:
        tensor: the whole sequence along `dim`, of any length, dtype and device.
        dim: the dimension to cut.
        group: the processes; None means all.
        load_balance: None: process r of W gets part r of W, whose lengths differ by at most 1, the
            longer ones first. "zigzag": parts r and 2 W - 1 - r of 2 W, for causal attention.

    Returns:
        The rows, as a new tensor; a view if they are contiguous in one part. Differentiable.

    Raises:
        TypeError: not a plain dense tensor, or a `dim` that is not an int.
        ValueError: a `dim` or `load_balance` that does not exist.
        RuntimeError: no process group, or a process outside of it.
    """
    what = "shard_sequence"
    channel = Channel(group)
    dim = _dimension(what, tensor, dim)
    check_load_balance(what, load_balance)
    length = tensor.size(dim)
    layout = (
        zigzag(length, channel.size)
        if load_balance == "zigzag"
        else contiguous(even_lengths(length, channel.size))
    )
    parts = [tensor.narrow(dim, c.begin, c.length) for c in layout.chunks[channel.rank]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@torch.compiler.disable
def unshard_sequence(
    tensor: Tensor,
    dim: int,
    *,
    group: dist.ProcessGroup | None = None,
    load_balance: LoadBalance | None = None,
) -> Tensor:
    """The whole sequence, from the rows that each process has: the inverse of `shard_sequence`.

    Args:
        tensor: the rows of this process along `dim`, on the CPU. Their number may differ between
            processes; the other sizes and the dtype are the same on all.
        dim: the dimension to join.
        group: the processes; None means all.
        load_balance: as in `shard_sequence`. With None, any number of rows on each process.

    Returns:
        The whole sequence, on every process. Differentiable: the gradient is that of the sum of
        the losses of all processes, and every process must run the backward.

    Raises:
        TypeError: not a plain dense tensor, or a `dim` that is not an int.
        ValueError: a `dim` or `load_balance` that does not exist, arguments that differ between the
            processes, or numbers of rows that are not those of "zigzag".
        NotImplementedError: a tensor that is not on the CPU.
        RuntimeError: no process group, a process outside of it, or a process that has ended or
            does not make the call within the timeout of the group.
    """
    what = "unshard_sequence"
    channel = Channel(group)
    described: dict[str, object] = {}
    rows = 0
    error: Exception | None = None
    try:
        dim = _dimension(what, tensor, dim)
        check_load_balance(what, load_balance)
        if tensor.device.type != "cpu":
            raise NotImplementedError(
                f"{what}: expected a tensor on the CPU, got it on {tensor.device}; move it with "
                ".cpu()"
            )
        rows = tensor.size(dim)
        described = {
            "load_balance": load_balance,
            "dtype": str(tensor.dtype),
            "dim": dim,
            "shape without dim": [*tensor.shape[:dim], *tensor.shape[dim + 1 :]],
            "choice of gradients": tensor.requires_grad and torch.is_grad_enabled(),
        }
    except Exception as refused:  # the other processes wait for an answer
        error = refused
    shared = agree(channel, what, described, rows, error=error)
    layout = layout_of(what, shared.lengths, load_balance)
    return _Unshard.apply(channel, layout, dim, tensor)


class _Unshard(torch.autograd.Function):
    """Every process sends its rows to every other; the backward adds what comes back."""

    @staticmethod
    def forward(ctx: Any, channel: Channel, layout: Layout, dim: int, tensor: Tensor) -> Tensor:
        ctx.channel, ctx.layout, ctx.dim = channel, layout, dim
        # Lazy conjugates and negatives are made real: bytes travel.
        rows_first = tensor.detach().resolve_conj().resolve_neg().movedim(dim, 0).contiguous()
        shape = rows_first.shape[1:]
        parts = [rows_first.new_empty((layout.rows(p), *shape)) for p in range(channel.size)]
        parts[channel.rank] = rows_first
        others = [p for p in range(channel.size) if p != channel.rank]
        channel.start([(p, rows_first) for p in others], [(p, parts[p]) for p in others]).wait()
        whole = rows_first.new_empty((layout.length, *shape))
        for chunks, part in zip(layout.chunks, parts, strict=True):
            lengths = [chunk.length for chunk in chunks]
            for chunk, rows in zip(chunks, part.split(lengths), strict=True):
                whole[chunk.begin : chunk.end] = rows
        return whole.movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        channel, layout = ctx.channel, ctx.layout
        whole = grads[0].resolve_conj().resolve_neg().movedim(ctx.dim, 0)
        # Terms of a sum: not in 16 bits.
        terms = torch.promote_types(whole.dtype, torch.float32)
        leaving = [
            torch.cat([whole[c.begin : c.end] for c in chunks]).to(terms).contiguous()
            for chunks in layout.chunks
        ]
        arriving = [torch.empty_like(leaving[channel.rank]) for _ in range(channel.size)]
        arriving[channel.rank] = leaving[channel.rank]
        others = [p for p in range(channel.size) if p != channel.rank]
        channel.start(
            [(p, leaving[p]) for p in others], [(p, arriving[p]) for p in others], GRADIENT_TAG
        ).wait()
        total = torch.stack(arriving).sum(0).to(whole.dtype)
        return None, None, None, total.movedim(0, ctx.dim)
