"""Layouts of rows over processes, and what a query may attend."""

from __future__ import annotations

from flash_attention.distributed.schedule import Reach, contiguous, zigzag

LAYOUTS = {
    "even": contiguous([4, 4, 4, 4]),
    "uneven": contiguous([0, 7, 1, 0, 9]),
    "zigzag": zigzag(23, 3),
    "zigzag-short": zigzag(5, 4),
    "one": contiguous([6]),
    "empty": contiguous([0, 0]),
}
REACHES = {
    "full": Reach(),
    "causal": Reach(None, 0),
    "window": Reach(3, 1),
    "causal-window": Reach(2, 0),
    "self": Reach(0, 0),
    "later": Reach(0, None),
}


def attends(reach: Reach, query: int, key: int) -> bool:
    return (reach.left is None or key >= query - reach.left) and (
        reach.right is None or key <= query + reach.right
    )
