"""How long a measurement will take: a guess before it starts, corrected by what has been done."""

from __future__ import annotations

import time

from points import Point, has_standard

# What one round costs in units of the time that the point's operations take at the peak, all
# candidates together. Only the proportions matter once the first points are done.
ROUND_COST = {
    "option/torch": 12.0,
    "option/plain": 3.5,
    "block size": 4.0,  # of seven candidates, in half as many rounds
    "threads": 3.0,
}
RIVALS_COST = 3.2
STANDARD_COST = 6.0
# Exponentials and sums take the time of as many operations more per pair of positions.
EXPONENTIALS_AS_HEAD_DIM = 13
# One core at AVX2 or AVX-512, before anything has been measured.
TYPICAL_PEAK = 100e9
# The least that a round takes: two samples of a short call, and the probes of the core.
ROUND_SECONDS = 0.004
PRODUCT_SECONDS = 0.025


def expected_seconds(points: list[Point], rounds: int) -> float:
    """A guess for all of them."""
    total = 0.0
    for point in points:
        cost = ROUND_COST.get(point.group, RIVALS_COST)
        cost += STANDARD_COST if has_standard(point) else 0.0
        peak = TYPICAL_PEAK if point.dtype == "float32" else TYPICAL_PEAK / 2
        work = point.flops * (1 + EXPONENTIALS_AS_HEAD_DIM / point.head_dim) / peak
        product = PRODUCT_SECONDS if samples_product(point) else 0.0
        # Two more: the calls before the first round.
        total += (rounds + 2) * (work * cost + ROUND_SECONDS + product)
    return total


def samples_product(point: Point) -> bool:
    """Whether the rounds of this point have a product of matrices, to compare the rate with."""
    return point.group in ("grid", "own shape") and point.dtype == "float32"


def minutes_text(seconds: float) -> str:
    """`95` -> `1.6 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Progress:
    """Counts what is done and says what is left.

    `seconds` is a guess for each of the parts, of which only the proportions matter; `later` is
    what follows in other processes.
    """

    def __init__(self, seconds: list[float], later: float = 0.0) -> None:
        self._left = seconds
        self._later = later
        self._done = 0
        self._expected = 0.0
        self._start = time.perf_counter()

    def advance(self) -> str:
        """One more part is done: `12/240, 14 min left`."""
        self._expected += self._left[self._done]
        self._done += 1
        factor = (time.perf_counter() - self._start) / self._expected
        left = factor * (sum(self._left[self._done :]) + self._later)
        return f"{self._done}/{len(self._left)}, {minutes_text(left)} left"
