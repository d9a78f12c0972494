"""What a process of a pool does: the call, its memory, its error, and the rates of the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import flash_attention
import torch
import torch.distributed as dist
from flash_attention.distributed import context_parallel_attention_with_lse, unshard_sequence
from flash_attention.distributed.communication import Channel
from flash_attention.distributed.probe import Measured, measure
from torch import Tensor

from bench.common.resident import forget_the_past, resident
from bench.distributed import reference, source
from bench.distributed.points import Point

TENSORS = ("out", "d_query", "d_key", "d_value")
# Long enough for the bandwidth, and so short that its time is the latency.
LONG_BYTES, SHORT_BYTES = 32 << 20, 64
SHORT_MESSAGES = 200


class Times(NamedTuple):
    """Seconds of one call on one process."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


class Error(NamedTuple):
    """Of a row: the largest difference from the reference, and its largest element."""

    difference: float
    size: float


@dataclass
class _Held:
    """The rows of a point on this process."""

    point: Point
    leaves: list[Tensor]
    grad_out: Tensor

    @staticmethod
    def of(point: Point, rank: int) -> _Held:
        spans = point.layout.chunks[rank]
        query, key, value, grad_out = (source.chunks(n, point, spans) for n in source.NAMES)
        return _Held(point, [x.requires_grad_() for x in (query, key, value)], grad_out)

    def call(self) -> tuple[Tensor, Tensor]:
        """out and lse."""
        point = self.point
        if point.processes == 1:
            return flash_attention.attention_with_lse(
                *self.leaves, causal=point.causal, window=point.sides
            )
        return context_parallel_attention_with_lse(
            *self.leaves,
            causal=point.causal,
            window=point.sides,
            method=point.method,
            load_balance=point.load_balance,
        )

    def step(self) -> tuple[Times, Tensor, Tensor]:
        """Forward and backward, after all processes have come here."""
        for leaf in self.leaves:
            leaf.grad = None
        if self.point.processes > 1:
            dist.barrier()
        begin = time.perf_counter()
        out, lse = self.call()
        middle = time.perf_counter()
        out.backward(self.grad_out)
        end = time.perf_counter()
        return Times(middle - begin, end - middle), out.detach(), lse.detach()


_held: _Held | None = None


def _first_call(point: Point, rank: int) -> tuple[int, Times, Tensor, Tensor]:
    """The most bytes beyond those before the inputs; the times, out and lse of a call."""
    global _held
    _held = None
    small = Point(256, point.processes, point.causal, point.window, method=point.method)
    _Held.of(small, rank).step()  # loads the code and tables that are loaded on first use
    forget_the_past()
    before = resident("VmRSS")
    _held = _Held.of(point, rank)
    found = _held.step()
    return resident("VmHWM") - before, *found


def prepare(point: Point, rank: int) -> tuple[int, Times]:
    """Makes the inputs and calls once: bytes at the peak, inputs included, and the times."""
    most, times, _, _ = _first_call(point, rank)
    return most, times


def step() -> Times:
    """One more call with the same inputs."""
    assert _held is not None
    return _held.step()[0]


def once(point: Point, rank: int) -> tuple[int, Times, dict[str, list[Error]]]:
    """`prepare` and the error of the same call, for calls that take long."""
    most, times, out, lse = _first_call(point, rank)
    assert _held is not None
    return most, times, _errors(_held, out, lse, rank)


def errors(rank: int) -> dict[str, list[Error]]:
    """The error of a call with the inputs of `prepare`, on the sampled rows of this process."""
    assert _held is not None
    _, out, lse = _held.step()
    return _errors(_held, out, lse, rank)


def _errors(held: _Held, out: Tensor, lse: Tensor, rank: int) -> dict[str, list[Error]]:
    point = held.point
    delta = (held.grad_out.double() * out.double()).sum(-1)
    if point.processes > 1:
        balance = point.load_balance
        lse, delta = (unshard_sequence(x, 2, load_balance=balance) for x in (lse, delta))
    grads = [leaf.grad for leaf in held.leaves]
    found: dict[str, list[Error]] = {name: [] for name in TENSORS}

    def compare(name: str, actual: Tensor | None, expected: Tensor) -> None:
        assert actual is not None
        difference = float((actual.double() - expected).abs().max())
        size = float(expected.abs().max())
        found[name].append(Error(difference, size))

    first = 0
    for chunk in point.layout.chunks[rank]:
        for position in reference.samples(point):
            if not chunk.begin <= position < chunk.end:
                continue
            row = first + position - chunk.begin
            exact = reference.Row(point, position)
            compare("out", out[:, :, row], exact.out)
            compare("d_query", grads[0][:, :, row], exact.d_query())
            d_key, d_value = reference.column(point, position, lse, delta)
            compare("d_key", grads[1][:, :, row], d_key)
            compare("d_value", grads[2][:, :, row], d_value)
        first += chunk.length
    return found


def rates(head_dim: int, threads: int) -> Measured:
    """Those of this process while the others measure theirs."""
    if dist.is_initialized():
        dist.barrier()
    return measure(head_dim, head_dim, torch.float32, threads)


class Link(NamedTuple):
    """Bytes per second into a process and out of it, and seconds of a short message."""

    bandwidth: float
    latency: float


def link() -> Link:
    """Of a ring, in which each process sends to the next while it receives from the last."""
    channel = Channel(None)
    target, source_of = (channel.rank + 1) % channel.size, (channel.rank - 1) % channel.size

    def exchange(size: int, times: int) -> float:
        leaving, arriving = torch.ones(2, size, dtype=torch.uint8).unbind()
        channel.start([(target, leaving)], [(source_of, arriving)]).wait()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(times):
            channel.start([(target, leaving)], [(source_of, arriving)]).wait()
        return (time.perf_counter() - begin) / times

    latency = exchange(SHORT_BYTES, SHORT_MESSAGES)
    return Link(LONG_BYTES / max(1e-9, exchange(LONG_BYTES, 5) - latency), latency)
