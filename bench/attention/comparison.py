"""Flash against standard attention at one length: accuracy, time and memory.

Query, key and value are [batch, L, 64] as in docs/guide.md, float64 unless stated otherwise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import flash_attention
import torch
from torch import Tensor

from bench.attention import workload
from bench.common import allocations, timing

HEAD_DIM = 64

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
METHODS: dict[str, Attention] = {
    "standard": flash_attention.standard_attention,
    "flash": flash_attention.attention,
}


def training_step(attention: Attention, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    out = attention(*inputs)
    grads = torch.autograd.grad(out, inputs, grad)
    return [out.detach(), *grads]


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences at one length, for standard normal inputs."""

    length: int
    float64: float  # flash to standard, output
    float64_gradients: float  # flash to standard, gradients of query, key and value
    float32: float  # flash to standard, output
    flash_to_truth: float  # float32 flash to float64 standard
    standard_to_truth: float  # float32 standard to float64 standard


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    """max |a - b| over all pairs of tensors."""
    return max((x.double() - y.double()).abs().max().item() for x, y in zip(a, b, strict=True))


def difference(length: int, batch: int = 1) -> Difference:
    """Runs both methods in both dtypes on the same inputs."""
    shape = (batch, length, HEAD_DIM)
    inputs = workload.qkv(shape, torch.float64, grad=True)
    grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    double = {name: training_step(call, inputs, grad) for name, call in METHODS.items()}
    with torch.no_grad():
        singles = [x.float() for x in inputs]
        truth = [METHODS["standard"](*(x.double() for x in singles))]
        single = {name: [call(*singles)] for name, call in METHODS.items()}
    return Difference(
        length=length,
        float64=largest(double["flash"][:1], double["standard"][:1]),
        float64_gradients=largest(double["flash"][1:], double["standard"][1:]),
        float32=largest(single["flash"], single["standard"]),
        flash_to_truth=largest(single["flash"], truth),
        standard_to_truth=largest(single["standard"], truth),
    )


@dataclass(frozen=True)
class Cost:
    """Seconds or bytes of standard attention and of flash."""

    standard: float
    flash: float

    @property
    def ratio(self) -> float:
        return self.standard / self.flash


def calls(length: int, batch: int, dtype: torch.dtype, backward: bool) -> dict[str, Callable]:
    """Both methods as calls without arguments that return what they computed."""
    shape = (batch, length, HEAD_DIM)
    inputs = workload.qkv(shape, dtype, grad=backward)
    grad = torch.ones(shape, dtype=dtype)

    def bind(attention: Attention) -> Callable[[], object]:
        if backward:
            return lambda: training_step(attention, inputs, grad)
        return lambda: attention(*inputs)

    return {name: bind(attention) for name, attention in METHODS.items()}


def time_cost(
    length: int,
    backward: bool,
    batch: int = 1,
    dtype: torch.dtype = torch.float64,
    rounds: int = 15,
    budget: float = 2.0,
) -> Cost:
    """Median seconds of a call, forward or forward + backward, timed in turns."""
    times = timing.interleaved(calls(length, batch, dtype, backward), rounds, budget)
    return Cost(**{name: statistics.median(samples) for name, samples in times.items()})


def memory_cost(
    length: int, backward: bool, batch: int = 1, dtype: torch.dtype = torch.float64
) -> Cost:
    """Peak bytes beyond inputs and outputs, forward or forward + backward, measured."""
    candidates = calls(length, batch, dtype, backward)
    return Cost(**{name: allocations.peak_memory(call) for name, call in candidates.items()})


def score_bytes(length: int, batch: int = 1) -> int:
    """One float64 [batch, L, L] matrix of scores, which the guide counts for standard attention."""
    return batch * length * length * 8


def predicted_bytes(length: int, batch: int = 1) -> int:
    """`memory_usage` for this shape, to compare with the measurement."""
    flash = flash_attention.FlashAttention()
    return flash.memory_usage(length, HEAD_DIM, HEAD_DIM, batch)
