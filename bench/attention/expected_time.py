"""An estimate of how long the points take, before anything is measured."""

from __future__ import annotations

from bench.attention.points import Point, has_standard

# Cost of a round, all candidates together, in units of the time that the point's operations take at
# peak. Only the proportions matter once the first points are done.
ROUND_COST = {
    "option/torch": 12.0,
    "option/plain": 3.5,
    "block size": 4.0,  # seven candidates, half as many rounds
    "threads": 3.0,
    "window": 35.0,  # the other candidate attends all keys, 32 times as many
}
RIVALS_COST = 3.2
STANDARD_COST = 6.0
# Exponentials and sums take as long as this many more elements of head_dim per score.
EXPONENTIALS_AS_HEAD_DIM = 13
# FLOP/s of one core at AVX2 or AVX-512.
TYPICAL_PEAK = 100e9
# Least time of a round: two samples of a short call and two probes of the core, all warmed up.
ROUND_SECONDS = 0.018
PRODUCT_SECONDS = 0.025


def expected_seconds(points: list[Point], rounds: int) -> float:
    """The estimate for all points together."""
    total = 0.0
    for point in points:
        cost = ROUND_COST.get(point.group, RIVALS_COST)
        cost += STANDARD_COST if has_standard(point) else 0.0
        peak = TYPICAL_PEAK if point.dtype == "float32" else TYPICAL_PEAK / 2
        work = point.flops * (1 + EXPONENTIALS_AS_HEAD_DIM / point.head_dim) / peak
        product = PRODUCT_SECONDS if samples_product(point) else 0.0
        # Two more rounds: the warm-up calls.
        total += (rounds + 2) * (work * cost + ROUND_SECONDS + product)
    return total


def samples_product(point: Point) -> bool:
    """Whether a matrix product is timed in each round, to compare rates with."""
    return point.group in ("grid", "own shape") and point.dtype == "float32"
