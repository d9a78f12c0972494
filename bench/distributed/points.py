"""What is measured: a call of attention and the processes that share it."""

from __future__ import annotations

from dataclasses import dataclass

from flash_attention.distributed.cost import Reach, Workload
from flash_attention.distributed.schedule import Layout, contiguous, even_lengths, zigzag

LENGTHS = (8192, 32768, 131072)
PROCESSES = (2, 4, 8)
# A call of several processes, with a core each, over one of one process with as many threads.
WANTED_RATIO = 1.1
MILLION = 1_000_000
WINDOW = 4096


@dataclass(frozen=True)
class Point:
    """A call, forward and backward, in float32.

    Attributes:
        window: the keys that a query attends, its own and those before it; None: all.
        processes: 1 means `attention`, without a group.
    """

    length: int
    processes: int
    causal: bool = False
    window: int | None = None
    heads: int = 2
    head_dim: int = 64
    batch: int = 1
    method: str = "ring"

    @property
    def load_balance(self) -> str | None:
        """Under a window, every row attends as many keys."""
        return "zigzag" if self.causal and self.window is None else None

    @property
    def sides(self) -> tuple[int, int] | None:
        """`window` as the operator takes it."""
        return None if self.window is None else (self.window - 1, 0)

    @property
    def layout(self) -> Layout:
        if self.load_balance == "zigzag":
            return zigzag(self.length, self.processes)
        return contiguous(even_lengths(self.length, self.processes))

    @property
    def reach(self) -> Reach:
        left = None if self.window is None else self.window - 1
        return Reach(left, 0 if self.causal or self.window is not None else None)

    @property
    def workload(self) -> Workload:
        heads, width = self.heads, self.head_dim
        return Workload(self.layout, self.reach, self.batch, (heads,) * 3, (width,) * 2)

    @property
    def mask(self) -> str:
        return f"window {self.window}" if self.window else "causal" if self.causal else "full"

    @property
    def label(self) -> str:
        shape = f"B {self.batch} H {self.heads} L {self.length} D {self.head_dim}"
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{shape}, {self.mask}, {count}"
