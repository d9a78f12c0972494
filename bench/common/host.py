"""The machine: its name, the commit that is measured, cores, and instruction sets of a process."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]

# Restricts torch, MKL, oneDNN and this project to one instruction set, so that algorithms are
# compared and not instructions.
AVX2_ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FLASH_ATTENTION_ISA": "avx2",
}
# oneDNN would use AMX where the CPU has it.
AVX512_ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx512",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    "FLASH_ATTENTION_ISA": "avx512",
}
AVX512_BF16_ENVIRONMENT = AVX512_ENVIRONMENT | {
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    "FLASH_ATTENTION_ISA": "avx512-bf16",
}
# AMX is the best that any library uses, so nothing is restricted.
AMX_ENVIRONMENT = {"FLASH_ATTENTION_ISA": "amx"}
ENVIRONMENTS = {
    "avx2": AVX2_ENVIRONMENT,
    "avx512": AVX512_ENVIRONMENT,
    "avx512-bf16": AVX512_BF16_ENVIRONMENT,
    "amx": AMX_ENVIRONMENT,
    "native": {},
}
ISAS = tuple(isa for isa in ENVIRONMENTS if isa != "native")

# The cores that this process was allowed to use when it started.
CORES = sorted(os.sched_getaffinity(0))

# What the measured libraries are built from. A commit that changes none of it measures the same.
SOURCES = ("csrc", "ops", "models", "cmake", "CMakeLists.txt")


def environment(isa: str) -> dict[str, str]:
    """Environment of a child process: all libraries at one of ISAS, or "native", each at its
    best.

    A library chooses its instruction set once, when it is loaded, so each choice needs a process.
    """
    return dict(os.environ) | ENVIRONMENTS[isa]


def pin(threads: int) -> None:
    """Sets torch's threads and pins the process to as many cores.

    The last cores are used, because the first one serves most interrupts.
    """
    os.sched_setaffinity(0, CORES[-threads:])
    torch.set_num_threads(threads)


def cpu_name() -> str:
    """The CPU's name from the kernel, with family and model if the name has no model number."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    name = fields.get("model name", platform.processor() or platform.machine())
    if not re.search(r"\d{3,}", name) and "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def slug(text: str) -> str:
    """`Intel(R) Xeon(R) Processor` -> `intel-xeon-processor`, for file names."""
    text = re.sub(r"\((r|tm|c)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def commit(root: Path = ROOT) -> str | None:
    """The last commit that changed SOURCES, with `+changes` if the work tree differs from it.

    None outside a git repository.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words, "--", *SOURCES]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # The repository of `root` itself, not one that happens to contain it.
        if not (root / ".git").exists() or not (found := git("log", "-1", "--format=%h")):
            return None
        return found + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """Where, when and of which commit: the provenance of every table, picture and record."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16"}
    names |= {"amx_tile": "AMX"}
    extensions = [text for flag, text in names.items() if f" {flag} " in flags]
    return {
        "cpu": cpu_name(),
        "extensions": extensions,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def describe(where: dict[str, Any], kernels: str | None = None) -> str:
    """The line below a table, with the instruction set of this project's kernels if given."""
    threads = f"{where['threads']} thread" + ("" if where["threads"] == 1 else "s")
    text = (
        f"{where['cpu']} with {', '.join(where['extensions']) or 'no AVX2'}, {threads} on "
        f"{where['cores']} cores, torch {where['torch']} at {where['torch_cpu_capability']}, "
        f"commit {where.get('commit') or 'unknown'}, {where['date']}"
    )
    return text if kernels is None else f"{text}; kernels of this project: {kernels}"
