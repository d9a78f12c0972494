"""The peak rates of one core: fused multiply-adds, MKL's matrix product, and a memory copy."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# One to five milliseconds: long against the clock's resolution, short against the measured calls.
FMA_STEPS = 1_000_000
PRODUCT_SIZE = 1024
# Source and target each exceed the last-level cache of most CPUs, so DRAM is measured.
COPY_BYTES = 256 << 20


@dataclass(frozen=True)
class Probe:
    """A call, and the operations or bytes of one call."""

    call: Callable[[], object]
    amount: float

    def rate(self, seconds: float) -> float:
        """Operations or bytes per second."""
        return self.amount / seconds


def load(build: Path) -> ctypes.CDLL:
    """The library that bench/CMakeLists.txt builds from peak.cpp."""
    path = build / "bench" / "libflash_attention_peak.so"
    if not path.is_file():
        sys.exit(
            f"bench/attention/peak.py: expected {path}, found none; run `make compile-all`, or "
            "name a build directory with --build (configured with -DFLASH_ATTENTION_BUILD_BENCH=ON)"
        )
    return ctypes.CDLL(str(path))


def fma(library: ctypes.CDLL, dtype: str, isa: str) -> Probe:
    """Multiply-adds alone, each counted as two operations; this CPU must support `isa`."""
    # Instruction sets with products of bfloat16 are AVX-512 in all else.
    name = isa.replace("-", "_") if dtype == "bfloat16" or isa == "avx2" else "avx512"
    run = getattr(library, f"fma_{dtype}_{name}")
    run.argtypes, run.restype = [ctypes.c_int64], ctypes.c_double
    operations = getattr(library, f"fma_{dtype}_operations_{name}")
    operations.restype = ctypes.c_double
    return Probe(lambda: run(FMA_STEPS), operations() * FMA_STEPS)


def product(dtype: str = "float32") -> Probe:
    """torch.mm: MKL's sgemm, or dgemm in float64."""
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return Probe(lambda: torch.mm(a, b, out=out), 2.0 * PRODUCT_SIZE**3)


def copy() -> Probe:
    """A memory copy; every byte counts twice, as read and as written."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return Probe(lambda: target.copy_(source), 2.0 * COPY_BYTES)
