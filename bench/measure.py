"""What the benchmark scripts share: naming the machine, interleaved timing, peak memory, inputs."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent

# The lengths of the integration guide's tables.
GUIDE_LENGTHS = (128, 512, 1024, 2048, 4096)

# What holds torch, MKL, oneDNN and this project to AVX2, so that a comparison is of algorithms and
# not of instructions.
AVX2_ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FLASH_ATTENTION_ISA": "avx2",
}
# The same for AVX-512: oneDNN would take AMX where the CPU has it.
AVX512_ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx512",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    "FLASH_ATTENTION_ISA": "avx512",
}
ENVIRONMENTS = {"avx2": AVX2_ENVIRONMENT, "avx512": AVX512_ENVIRONMENT, "native": {}}

# A timed sample repeats a short call until it lasts this long, so that the clock does not matter.
SHORTEST_SAMPLE_SECONDS = 3e-4
# A first call of this length is long enough to know by it that nothing has to be repeated.
LONG_SECONDS = 0.5
# A call shorter than this is called once before its sample begins: what ran before it left the
# caches to itself, and to fetch the inputs again would be a good part of so short a time.
WARMED_SECONDS = 5e-3

# The cores that whoever started this process allows it.
CORES = sorted(os.sched_getaffinity(0))


def environment(isa: str) -> dict[str, str]:
    """For a child process: everybody at "avx2" or at "avx512", or each at its best ("native").

    The instruction set is chosen once, while a library is loaded, so it takes a fresh process.
    """
    return dict(os.environ) | ENVIRONMENTS[isa]


def pin(threads: int) -> None:
    """As many threads of torch, and as many cores, the last ones: the first has the interrupts."""
    os.sched_setaffinity(0, CORES[-threads:])
    torch.set_num_threads(threads)


def cpu_name() -> str:
    """The processor as the kernel names it, with family and model where the name says little."""
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


def machine() -> dict[str, Any]:
    """Where and when: for the heading of every table and picture."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
    extensions = [text for flag, text in names.items() if f" {flag} " in flags]
    return {
        "cpu": cpu_name(),
        "extensions": extensions,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "date": time.strftime("%Y-%m-%d"),
    }


def describe(where: dict[str, Any]) -> str:
    """One line for the heading of a table."""
    threads = f"{where['threads']} thread" + ("" if where["threads"] == 1 else "s")
    return (
        f"{where['cpu']} with {', '.join(where['extensions']) or 'no AVX2'}, {threads} on "
        f"{where['cores']} cores, torch {where['torch']} at {where['torch_cpu_capability']}, "
        f"{where['date']}"
    )


def qkv(shape: tuple[int, ...], dtype: torch.dtype, grad: bool = False) -> tuple[Tensor, ...]:
    """Query, key and value, standard normal, the same for every caller of one shape and dtype."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad) for _ in range(3)
    )


def textbook(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard attention as a user writes it; `mask` [L, S] is 0 or -inf and made beforehand."""
    scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ value


def causal_mask(length: int, dtype: torch.dtype) -> Tensor:
    """[length, length]: -inf above the diagonal."""
    return torch.full((length, length), -math.inf, dtype=dtype).triu(1)


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one of `repeats` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, one sample of each in every round.

    Taking turns puts a slow moment of the machine on all candidates alike. Ends after `rounds`, or
    after `budget` seconds if at least three rounds are done.
    """
    repeats: dict[str, int] = {}
    warmed: dict[str, bool] = {}
    for name, call in calls.items():
        # The first call of a process allocates and, in MKL, chooses its kernels.
        seconds = timed(call)
        if seconds < LONG_SECONDS:
            seconds = timed(call)
        repeats[name] = max(1, int(SHORTEST_SAMPLE_SECONDS / seconds))
        warmed[name] = seconds < WARMED_SECONDS
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, call in calls.items():
            if warmed[name]:
                call()
            samples[name].append(timed(call, repeats[name]))
    return samples


def quartiles_of_ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Over rounds, of slow / fast, each ratio within one round; the second is the median."""
    low, median, high = statistics.quantiles((s / f for s, f in zip(slow, fast, strict=True)), n=4)
    return low, median, high


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of slow / fast, each ratio within one round."""
    return quartiles_of_ratio(slow, fast)[1]


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler of torch 2.13 writes two lines per use straight to file descriptor 2."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def peak_memory(call: Callable[[], Any]) -> int:
    """Most bytes that `call` holds at any moment beyond its inputs and what it returns.

    Every allocation of torch's CPU allocator is seen, on all threads, to the byte. The blocks still
    alive after the call are its outputs: `call` must return them and keep nothing else.
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


def rounded(number: float) -> float:
    """Four digits: more than a repetition of the measurement would confirm."""
    return float(f"{number:.4g}")


def bytes_text(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def seconds_text(seconds: float) -> str:
    """`0.0123` -> `12.3 ms`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    raise AssertionError("unreachable")


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table that also lines up on a console: `left` columns of text, then numbers."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: list[str]) -> str:
        texts = [
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(texts) + " |"

    rule = [
        "-" * (width + 2) if i < left else "-" * (width + 1) + ":" for i, width in enumerate(widths)
    ]
    return "\n".join([line(header), "|" + "|".join(rule) + "|", *map(line, rows)])
