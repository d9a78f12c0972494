"""The instruction sets that tests run on, and how to switch between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import flash_attention
import torch

SUPPORTED = [isa.name for isa in flash_attention.build_info().isa if isa.supported]

# Those that compute bfloat16 in products of bfloat16: on matrix tiles, which also take float32 in
# parts if asked to, on vectors, or on emulated tiles. In all else, they are avx512 and avx2.
WITH_TILES = ("amx", "avx512-bf16", "amx-emulated")

# If set, FLASH_ATTENTION_ISA limits the run to one instruction set.
ASKED = os.environ.get("FLASH_ATTENTION_ISA")
TESTED = [ASKED] if ASKED else [name for name in SUPPORTED if name not in WITH_TILES]

# Those for tests of bfloat16, marked `tiles`: also on the best of these that this CPU has.
TESTED_WITH_TILES = TESTED if ASKED else TESTED + [n for n in WITH_TILES if n in SUPPORTED][:1]

# The same for tests of float32 in parts, marked `float_parts`.
WITH_FLOAT_PARTS = ("amx", "amx-emulated")
TESTED_WITH_FLOAT_PARTS = (
    TESTED if ASKED else TESTED + [n for n in WITH_FLOAT_PARTS if n in SUPPORTED][:1]
)


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
