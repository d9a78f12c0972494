"""What a call of `context_parallel_attention` costs: a model, for more processes than one has.

A block of P pairs of a query and a key, of H heads in a batch of B, takes the seconds

    2 B H P (a D + b Dv) / rate + call

with a = b = 1 in the forward and a = 3, b = 2 in the backward, which are its matrix products: head
dimension D, width of a value Dv, a multiply-add as two operations. P counts the pairs that attend
each other, so that masks count as they are skipped. A message of n bytes arrives

    latency + n / bandwidth

seconds after both of its processes have asked for it and the links of both are free: a link carries
one message into a process and one out of it at a time. The n bytes are those of the rows of keys
and values that the receiver attends, B (Hk D + Hv Dv) elements each, in the dtype of the inputs;
gradients travel as they are computed, in float32 or float64.

With these two rules, every step of the schedule is put on a clock per process, in the order of the
code. In "ring", process r asks for the keys of step t + 1 when those of step t are there, and then
computes step t:

    begin(r, t) = max(end(r, t - 1), arrival(r, t), departure(r, t))
    end(r, t) = begin(r, t) + compute(r, t)
    arrival(r, t) = max(begin(r, t - 1), begin(r - t, t - 1), free links) + latency + n / bandwidth

The backward computes a part of step 0 after all others, while the last gradients travel.

Without a mask, L rows on W processes in steps of equal blocks take W max(compute, latency + n /
bandwidth): computation hides the messages if 2 H (L / W) (D + Dv) / rate > (Hk D + Hv Dv) element /
bandwidth, so that messages matter on many processes, of few rows each, and not with the length.

Beside the operator, a process packs messages and joins partial results, which is work on rows and
not on pairs; the model leaves it out, and with it the check before each call, and any sharing of
one machine's memory or cores by its processes.

Sources: Liu et al., Ring attention with blockwise transformers for near-infinite context
(arXiv:2310.01889), section 3, for the overlap; Culler et al., LogP: towards a realistic model of
parallel computation, PPoPP 1993, for messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flash_attention.distributed import peak_memory, timeline
from flash_attention.distributed.schedule import Layout, Reach
from flash_attention.distributed.timeline import Timeline
from flash_attention.distributed.ulysses import head_groups
from flash_attention.distributed.workload import BACKWARD, FORWARD, Direction, Rates, Workload

__all__ = [
    "METHODS",
    "Layout",
    "Prediction",
    "Rates",
    "Reach",
    "Workload",
    "best",
    "predict",
    "refusal",
]


@dataclass(frozen=True)
class Prediction:
    """Seconds and bytes, of the process that has most of each unless stated."""

    seconds: float
    computing: float
    """Seconds in the operator, the mean of all processes."""
    memory: float
    sent: float
    sent_by_all: float

    @property
    def waiting(self) -> float:
        """The mean share of the time in which a process does not compute."""
        return 1 - self.computing / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class _Method:
    run: Callable[[Timeline, Direction], None]
    memory: Callable[[Workload, bool], Tensor]


METHODS: dict[str, _Method] = {
    "ring": _Method(timeline.ring, peak_memory.ring),
    "all_gather": _Method(timeline.all_gather, peak_memory.all_gather),
    "ulysses": _Method(timeline.ulysses, peak_memory.ulysses),
}


def refusal(method: str, work: Workload) -> str | None:
    """Why a method cannot make the call, or None."""
    groups = head_groups(*work.heads[1:])
    if method == "ulysses" and groups < work.layout.processes:
        return f"needs {work.layout.processes} groups of heads, got {groups}"
    return None


def predict(method: str, work: Workload, rates: Rates, backward: bool = True) -> Prediction:
    """The cost of a call by one of METHODS: the forward, and the backward after it.

    Raises:
        ValueError: a method that does not exist, or that cannot make the call.
    """
    if method not in METHODS:
        raise ValueError(
            f"flash_attention.distributed.cost: expected method as one of {', '.join(METHODS)}, "
            f"got {method!r}"
        )
    if reason := refusal(method, work):
        raise ValueError(f"flash_attention.distributed.cost: method={method!r} {reason}")
    chosen = METHODS[method]
    clocks = Timeline(work, rates)
    for direction in (FORWARD, BACKWARD) if backward else (FORWARD,):
        chosen.run(clocks, direction)
    return Prediction(
        seconds=float(clocks.clock.amax()),
        computing=float(clocks.computing.mean()),
        memory=float(chosen.memory(work, backward).amax()),
        sent=float(clocks.sent.amax()),
        sent_by_all=float(clocks.sent.sum()),
    )


# Faster by less than this is no reason to take more memory: the model is not as exact.
AS_FAST = 1.02


def best(found: dict[str, Prediction], memory: float | None = None) -> str | None:
    """The name of the fastest prediction that fits; of those that are as fast, the smallest.

    Args:
        found: predictions by name.
        memory: bytes that a process has; None: any number.

    Returns:
        None if none fits.
    """
    fitting = {n: p for n, p in found.items() if memory is None or p.memory <= memory}
    if not fitting:
        return None
    fastest = min(p.seconds for p in fitting.values())
    close = [n for n, p in fitting.items() if p.seconds <= AS_FAST * fastest]
    return min(close, key=lambda name: fitting[name].memory)
