"""Interleaved timing of several candidates, and ratios of their times."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

# A sample repeats a short call until it lasts this long, so that the clock's resolution is
# negligible.
SHORTEST_SAMPLE_SECONDS = 3e-4
# If the first call takes this long, neither a second warm-up call nor repetition is needed.
LONG_SECONDS = 0.5
# A call shorter than this is warmed up before each sample: the previous candidate has evicted its
# inputs and its code from the caches, and fetching them again would be a large share of its time.
WARMED_SECONDS = 5e-3
# For so long, because one call is not enough: of two identical backward calls of 1 ms in turns with
# a loop of multiply-adds, the one that followed the loop seemed 5% slower, of two training steps of
# 40 µs 6 to 15%. With 3 ms they differ by less than 1%.
WARM_UP_SECONDS = 3e-3


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean seconds per call over `repeats` consecutive calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def warm_up(call: Callable[[], object]) -> None:
    """Calls once, and again until WARM_UP_SECONDS have passed."""
    end = time.perf_counter() + WARM_UP_SECONDS
    call()
    while time.perf_counter() < end:
        call()


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, one sample of each per round.

    Because candidates alternate, a slow phase of the machine affects all of them alike. Ends after
    `rounds`, or after `budget` seconds once three rounds are done.
    """
    repeats: dict[str, int] = {}
    warmed: dict[str, bool] = {}
    for name, call in calls.items():
        # The first call of a process allocates and, in MKL, selects kernels.
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
                warm_up(call)
            samples[name].append(timed(call, repeats[name]))
    return samples


def quartiles_of_ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of slow / fast, paired by round."""
    low, median, high = statistics.quantiles((s / f for s, f in zip(slow, fast, strict=True)), n=4)
    return low, median, high


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median of slow / fast, paired by round."""
    return quartiles_of_ratio(slow, fast)[1]
