"""Sets the number of threads, and measures the memory a call takes from torch's allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets `count` threads inside the block and restores the previous number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensor_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages of `tensors`."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def peak_beyond_result(call: Callable[[], Any]) -> int:
    """Peak bytes allocated inside `call`, minus those of the tensors it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    tensors = [result] if isinstance(result, torch.Tensor) else [t for t in result if t is not None]
    return peak - tensor_bytes(tensors)
