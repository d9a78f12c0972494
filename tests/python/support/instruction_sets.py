"""The instruction sets that tests run on, and how to switch between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import flash_attention
import torch

SUPPORTED = [isa.name for isa in flash_attention.build_info().isa if isa.supported]

# If set, FLASH_ATTENTION_ISA limits the run to one instruction set.
TESTED = [os.environ["FLASH_ATTENTION_ISA"]] if os.environ.get("FLASH_ATTENTION_ISA") else SUPPORTED


def active() -> str:
    """The active instruction set."""
    return flash_attention.build_info().active


@contextmanager
def kernels(isa: str) -> Iterator[None]:
    """Activates `isa` inside the block, for all threads, and restores the previous one after it."""
    before = torch.ops.flash._use_isa(isa)
    try:
        yield
    finally:
        torch.ops.flash._use_isa(before)
