"""The rates of the machine that this runs on, measured in about a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from flash_attention.functional import attention

__all__ = ["Measured", "measure"]

# Long enough that nothing but the kernels counts, short enough for some repetitions.
LENGTH = 2048
# Of a tensor, so that wide heads and many threads take no gigabytes.
ELEMENTS = 2**25
SECONDS = 0.3


class Measured(NamedTuple):
    """FLOP/s of the forward and of the backward, and seconds of a call with one query and key."""

    forward: float
    backward: float
    call: float


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median(call: Callable[[], object], budget: float = SECONDS) -> float:
    """Seconds of a call: the median of three or more, after one that is not counted."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + budget
    while len(samples) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def measure(
    head_dim: int, value_dim: int, dtype: torch.dtype, threads: int, length: int = LENGTH
) -> Measured:
    """Measures attention of up to `length` positions without a mask, a head for each thread."""
    length = max(1, min(length, ELEMENTS // (threads * max(head_dim, value_dim))))
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, width: int) -> torch.Tensor:
        shape = (1, threads, rows, width)
        return torch.randn(shape, generator=generator).to(dtype)

    query, key = normal(length, head_dim), normal(length, head_dim)
    value = normal(length, value_dim)
    one = [x[:, :, :1] for x in (query, key, value)]
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    pairs = 2.0 * threads * length * length
    with _threads(threads):
        with torch.no_grad():
            call = _median(lambda: attention(*one), SECONDS / 10)
            forward = _median(lambda: attention(query, key, value))
        out = attention(*leaves)
        gradient = torch.ones_like(out)
        backward = _median(lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True))
    return Measured(
        forward=pairs * (head_dim + value_dim) / forward,
        backward=pairs * (3 * head_dim + 2 * value_dim) / backward,
        call=call,
    )
