"""Peak memory of a call, counted from the allocations that torch's profiler reports."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discards the two lines that torch 2.13's profiler writes to file descriptor 2 per use."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def peak_memory(call: Callable[[], Any]) -> int:
    """Largest number of bytes that `call` holds at any moment beyond its inputs and its result.

    Counts every allocation of torch's CPU allocator, on all threads, exactly. Blocks that are still
    alive after the call are its outputs, so `call` must return them and keep nothing else.
    """
    with _quiet_stderr(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = call()
    events = [e.nbytes() for e in profile.kineto_results.events() if e.name() == "[memory]"]
    del result
    live: dict[int, list[int]] = {}
    for index, size in enumerate(events):
        if size > 0:
            live.setdefault(size, []).append(index)
        elif live.get(-size):
            live[-size].pop()
    outputs = {index for indices in live.values() for index in indices}
    held = peak = 0
    for index, size in enumerate(events):
        held += 0 if index in outputs else size
        peak = max(peak, held)
    return peak
