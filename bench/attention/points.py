"""The points that `make bench` measures, with their FLOPs and bytes.

A point is one shape and direction at which two or more candidates are timed in turns. The first
candidate is the subject; the ratio of another one is its time over the subject's. `candidates.py`
has the calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.attention import workload

HEAD_DIMS = (16, 32, 64, 128)
LENGTHS = (64, 128, 512, 1024, 2048, 4096)
# Without 4096, which takes longer than all others together and twice as long as in float32;
# `--full` includes it.
FLOAT64_LENGTHS = LENGTHS[:-1]
FORECAST_LENGTHS = (12, 42, 96)
FORECAST_HEAD_DIMS = (8, 16, 32)
BFLOAT16_LENGTHS = (64, 512, 1024, 4096)
# Beyond these, torch's backward takes seconds per call.
BFLOAT16_BACKWARD_LENGTHS = BFLOAT16_LENGTHS[:-1]
FLOAT32_PARTS_LENGTHS = (512, 1024, 4096)
FLOAT32_PARTS_HEAD_DIMS = (64, 128)
BLOCK_LENGTHS = (512, 1024, 4096)
# One query of 8 heads against a long KV cache: one decoding step of a language model.
DECODE_KEYS = 32768
DECODE_DTYPES = ("float32", "bfloat16")
DECODE_HEAD_DIMS = (64, 128)
# The option of a decode point that is measured on one thread instead of two.
ONE_THREAD = "one thread"
WINDOW_LENGTH = 4096
WINDOW = 128
# (heads, length) at D 64: two long heads, eight shorter ones, and one head split between threads.
THREAD_SHAPES = ((2, 2048), (8, 1024), (1, 4096))
# Options that torch supports only outside its own flash attention.
RIVAL_OPTIONS = ("dropout", "bias gradient", "value width", "3-D")
OPTIONS = (
    "dropout",
    "bias gradient",
    "boolean mask",
    "value width",
    "3-D",
    "grouped heads",
    "query positions",
    "strided heads",
)

# Matrix products that attention needs, as many over head_dim and as many over the width of a value:
# scores, and output in the forward; scores again, dQ and dK, and dP and dV in the backward.
PRODUCTS = {"forward": (1, 1), "recorded": (1, 1), "backward": (3, 2), "training": (4, 3)}
# How often tensors of the sizes of query, key, value and output are read or written: in the
# backward also the gradient of the output and three gradients. Forward + backward counts each once.
PASSES = {"forward": 1, "recorded": 1, "backward": 2, "training": 2}
SIZES = {"float32": 4, "float64": 8, "bfloat16": 2}


# Instruction sets with products of bfloat16. In all else they are AVX-512.
WITH_BFLOAT16 = ("avx512-bf16", "amx")


def on_tiles(dtype: str, isa: str) -> bool:
    """Whether the products of a dtype run on matrix tiles."""
    return dtype == "bfloat16" and isa == "amx"


def computed(dtype: str, isa: str) -> str:
    """The dtype of the operands of a dtype's multiply-adds."""
    return "float32" if dtype == "bfloat16" and isa not in WITH_BFLOAT16 else dtype


def narrow_width(head_dim: int) -> int:
    """The width of a value with the option "value width"."""
    return head_dim // 2


DIRECTIONS = {
    "forward": "forward",
    "recorded": "forward with autograd",
    "backward": "backward",
    "training": "forward + backward",
}


@dataclass(frozen=True)
class Point:
    """One shape in one direction.

    Attributes:
        group: the part of the run it belongs to; selects the candidates and the targets.
        direction: "forward" without autograd, "recorded" forward with autograd, "backward" alone,
            or "training", which is forward + backward.
        option: what differs from the plain call; may be empty.
    """

    group: str
    direction: str
    length: int
    head_dim: int
    heads: int = 8
    batch: int = 1
    dtype: str = "float32"
    causal: bool = False
    option: str = ""

    @property
    def tag(self) -> str:
        """Group and dtype, of which `--group` takes a prefix: `grid bfloat16`."""
        return f"{self.group} {self.dtype}"

    @property
    def queries(self) -> int:
        """The number of queries; `length` is that of the keys."""
        return 1 if self.group == "decode" else self.length

    @property
    def threads(self) -> int:
        """The threads of the subject."""
        both = self.group in ("threads", "decode") and self.option != ONE_THREAD
        return 2 if both else 1

    @property
    def value_dim(self) -> int:
        """The width of the subject's values, which is the plain call in "option/plain"."""
        narrow = self.group == "option/torch" and self.option == "value width"
        return narrow_width(self.head_dim) if narrow else self.head_dim

    @property
    def sides(self) -> tuple[int, int]:
        """How many keys a query attends before and after its own position."""
        if self.group == "window":
            width = int(self.option.removeprefix("window "))
            return width // 2, width - width // 2 - 1
        return self.length, 0 if self.causal else self.length

    @property
    def pairs(self) -> int:
        """The pairs of a query and a key of one head that the subject attends."""
        beyond = (max(0, self.length - 1 - side) for side in self.sides)
        masked = sum(count * (count + 1) // 2 for count in beyond)
        return self.queries * self.length - masked

    @property
    def flops(self) -> float:
        """Of the products, over attended pairs only; a multiply-add is two."""
        over_head_dim, over_value_dim = PRODUCTS[self.direction]
        widths = over_head_dim * self.head_dim + over_value_dim * self.value_dim
        return 2.0 * self.batch * self.heads * self.pairs * widths

    @property
    def bytes(self) -> int:
        """Inputs and outputs, each once: the least memory traffic."""
        rows = self.batch * self.heads * (self.queries + self.length)
        size = SIZES[self.dtype]
        return PASSES[self.direction] * rows * (self.head_dim + self.value_dim) * size

    @property
    def label(self) -> str:
        """For a line of progress or a table."""
        heads = f"B {self.batch} " if self.batch > 1 else ""
        causal = ", causal" if self.causal else ""
        option = f", {self.option}" if self.option else ""
        shape = f"{heads}H {self.heads} L {self.length} D {self.head_dim}"
        return f"{self.group}: {DIRECTIONS[self.direction]}, {self.dtype}, {shape}{causal}{option}"


def grid(dtype: str, lengths: tuple[int, ...]) -> Iterator[Point]:
    """8 heads, every head_dim and length, both directions, full and causal."""
    for length in lengths:
        for head_dim in HEAD_DIMS:
            for direction in ("forward", "backward"):
                for causal in (False, True):
                    yield Point("grid", direction, length, head_dim, dtype=dtype, causal=causal)


def bfloat16() -> Iterator[Point]:
    """The grid in bfloat16."""
    yield from (p for p in grid("bfloat16", BFLOAT16_LENGTHS) if p.direction == "forward")
    yield from (p for p in grid("bfloat16", BFLOAT16_BACKWARD_LENGTHS) if p.direction == "backward")


def float32_parts() -> Iterator[Point]:
    """float32 as sums of bfloat16 parts on matrix tiles, against AVX-512."""
    for length in FLOAT32_PARTS_LENGTHS:
        for head_dim in FLOAT32_PARTS_HEAD_DIMS:
            for direction in ("forward", "backward"):
                yield Point("float32 parts", direction, length, head_dim)


def decode() -> Iterator[Point]:
    """One query over many keys, on two threads and on one, against a copy of as many bytes."""
    for option in ("", ONE_THREAD):
        for dtype in DECODE_DTYPES:
            for head_dim in DECODE_HEAD_DIMS:
                point = Point("decode", "forward", DECODE_KEYS, head_dim, dtype=dtype)
                yield replace(point, option=option)


def window() -> Iterator[Point]:
    """A sliding window against all keys."""
    for direction in ("forward", "training"):
        yield Point("window", direction, WINDOW_LENGTH, 64, option=f"window {WINDOW}")


def forecast() -> Iterator[Point]:
    """Many short sequences: attention over the patches of a forecaster."""
    for length in FORECAST_LENGTHS:
        for head_dim in FORECAST_HEAD_DIMS:
            for direction in ("forward", "backward"):
                yield Point("forecast", direction, length, head_dim, batch=128)


def overhead() -> Iterator[Point]:
    """So little work that the dispatcher and autograd dominate."""
    for direction in ("forward", "recorded", "training"):
        yield Point("overhead", direction, 4, 8, heads=1)


def threads() -> Iterator[Point]:
    """Two threads against one."""
    for heads, length in THREAD_SHAPES:
        for direction in ("forward", "backward"):
            yield Point("threads", direction, length, 64, heads=heads)


def options() -> Iterator[Point]:
    """Options against torch with the same option, and against the plain call."""
    for option in RIVAL_OPTIONS:
        yield Point("option/torch", "training", 2048, 64, heads=4, option=option)
    for option in OPTIONS:
        causal = option == "query positions"
        yield Point("option/plain", "training", 1024, 64, causal=causal, option=option)


def block_sizes() -> Iterator[Point]:
    """The effect of block_size; forward + backward only up to L 1024, to save time."""
    for length in BLOCK_LENGTHS:
        yield Point("block size", "forward", length, 64)
        if length <= 1024:
            yield Point("block size", "training", length, 64)


def own_shape(length: int, head_dim: int, heads: int, batch: int, dtype: str) -> list[Point]:
    """A shape given by the user, both directions, full and causal."""
    return [
        Point("own shape", direction, length, head_dim, heads, batch, dtype, causal)
        for direction in ("forward", "backward")
        for causal in (False, True)
    ]


def plan(isa: str, full: bool = False) -> list[Point]:
    """All points, in the order in which they are measured."""
    if isa in WITH_BFLOAT16:
        return [*bfloat16(), *(float32_parts() if isa == "amx" else ())]
    points = [*overhead(), *grid("float32", LENGTHS), *forecast()]
    if full:
        points += grid("float64", LENGTHS)
    elif isa == "avx2":  # the instruction set with a target for float64
        points += grid("float64", FLOAT64_LENGTHS)
    points += bfloat16()
    return [*points, *options(), *block_sizes(), *window(), *threads(), *decode()]


def quick_plan(isa: str) -> list[Point]:
    """A few points of every group, which take seconds."""
    few = [
        *overhead(),
        *(
            Point("grid", direction, length, head_dim, dtype=dtype, causal=causal)
            for dtype in SIZES
            for length in (64, 128)
            for head_dim in (16, 64)
            for direction in ("forward", "backward")
            for causal in (False, True)
        ),
        *(Point("forecast", direction, 12, 8, batch=128) for direction in ("forward", "backward")),
        *(Point("option/torch", "training", 64, 16, heads=4, option=o) for o in RIVAL_OPTIONS),
        *(
            Point("option/plain", "training", 64, 16, causal=o == "query positions", option=o)
            for o in OPTIONS
        ),
        Point("block size", "forward", 128, 64),
        Point("window", "forward", 512, 16, option="window 32"),
        Point("threads", "forward", 128, 64, heads=2),
        *(Point("decode", "forward", 4096, 16, option=option) for option in ("", ONE_THREAD)),
    ]
    return [p for p in few if p.dtype == "bfloat16"] if isa in WITH_BFLOAT16 else few


def has_standard(point: Point) -> bool:
    """Whether standard attention is measured: at the guide's lengths, and at the user's shapes."""
    if point.group == "own shape":
        return True
    guide = point.length in workload.GUIDE_LENGTHS and point.head_dim == 64
    return (
        point.group == "grid"
        and guide
        and point.direction == "forward"
        and point.dtype == "float32"
    )
