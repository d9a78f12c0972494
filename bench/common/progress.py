"""How long a measurement still takes: an estimate, corrected by the time of the finished parts."""

from __future__ import annotations

import time

from bench.common.formatting import minutes_text


class Progress:
    """Counts finished parts and estimates the time left.

    `seconds` estimates each part; only the proportions matter. `later` estimates what other
    processes do afterwards.
    """

    def __init__(self, seconds: list[float], later: float = 0.0) -> None:
        self._left = seconds
        self._later = later
        self._done = 0
        self._expected = 0.0
        self._start = time.perf_counter()

    def advance(self) -> str:
        """Marks one more part as finished: `12/240, 14 min left`."""
        self._expected += self._left[self._done]
        self._done += 1
        factor = (time.perf_counter() - self._start) / self._expected
        left = factor * (sum(self._left[self._done :]) + self._later)
        return f"{self._done}/{len(self._left)}, {minutes_text(left)} left"
