"""The instruction sets of this CPU, taking turns inside one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import flash_attention
import torch


def supported() -> list[str]:
    """Names of those that this CPU has, best first."""
    return [isa.name for isa in flash_attention.build_info().isa if isa.supported]


@contextmanager
def kernels_of(isa: str) -> Iterator[None]:
    """The kernels of this instruction set inside of the block, the former ones after it."""
    before = torch.ops.flash._use_isa(isa)
    try:
        yield
    finally:
        torch.ops.flash._use_isa(before)
