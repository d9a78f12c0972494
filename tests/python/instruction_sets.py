"""The instruction sets that tests run on, and the switch between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import flash_attention
import torch

SUPPORTED = [isa.name for isa in flash_attention.build_info().isa if isa.supported]

# FLASH_ATTENTION_ISA, where set, limits a run to the one that it names.
TESTED = [os.environ["FLASH_ATTENTION_ISA"]] if os.environ.get("FLASH_ATTENTION_ISA") else SUPPORTED


def active() -> str:
    """The instruction set whose kernels run now."""
    return flash_attention.build_info().active


@contextmanager
def kernels(isa: str) -> Iterator[None]:
    """The kernels of `isa` inside the block, in all threads; those of before after it."""
    before = torch.ops.flash._use_isa(isa)
    try:
        yield
    finally:
        torch.ops.flash._use_isa(before)
