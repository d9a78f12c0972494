"""The command line of `python -m flash_attention.distributed.plan`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from flash_attention.distributed.schedule import Reach

__all__ = ["BANDWIDTH", "DTYPES", "LATENCY", "MOST_PROCESSES", "Options", "parse"]

# Positions and their differences are exact in float64.
LONGEST = 2**53
# Every pair of processes is looked at: these take some minutes.
MOST_PROCESSES = 4096
MOST_HEADS, MOST_WIDTH, MOST_THREADS = 2**20, 2**16, 256
# With these, no time or size overflows.
SMALLEST, LARGEST = 1e-12, 1e30
# A 10 Gbit/s network between machines.
BANDWIDTH, LATENCY = 1.25e9, 5e-5
# Bytes of an element.
DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _decimal(text: str) -> Decimal | None:
    """The number that a text says, if it is finite."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def whole(least: int, most: int) -> Callable[[str], int]:
    """Parses 1000000, 1_000_000 or 1e6."""

    def parse_one(text: str) -> int:
        value = _decimal(text)
        # Compared first: 1e999999999 has as many digits.
        if value is None or not least <= value <= most or value != value.to_integral_value():
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, such as 4096 or 1e6, got "
                f"{_excerpt(text)}"
            )
        return int(value)

    return parse_one


def number(zero: bool = False) -> Callable[[str], float]:
    """Parses a rate, or with `zero` a time, which may be 0."""

    def parse_one(text: str) -> float:
        value = _decimal(text)
        is_zero = zero and value == 0
        if value is None or not (is_zero or SMALLEST <= value <= LARGEST):
            least = "0, or one " if zero else ""
            raise argparse.ArgumentTypeError(
                f"expected a number, {least}from {SMALLEST:g} to {LARGEST:g}, such as 2.5e9, got "
                f"{_excerpt(text)}"
            )
        return float(value)

    return parse_one


class Options(argparse.Namespace):
    """What the command line says, with its defaults."""

    length: int
    processes: int
    batch: int
    heads: int
    key_heads: int
    value_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    causal: bool
    window: list[int] | None
    load_balance: str | None
    forward_only: bool
    threads: int
    forward_rate: float | None
    backward_rate: float | None
    call: float | None
    bandwidth: float
    latency: float
    memory: float | None

    @property
    def reach(self) -> Reach:
        left, right = self.window or (-1, -1)
        if self.causal:
            right = 0
        return Reach(None if left < 0 else left, None if right < 0 else right)


def _parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m flash_attention.distributed.plan",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    size = whole(1, LONGEST)
    call = found.add_argument_group("the call")
    call.add_argument("--length", type=size, required=True, help="positions of the sequence")
    call.add_argument(
        "--processes", type=whole(1, MOST_PROCESSES), required=True, help="that share the sequence"
    )
    call.add_argument("--batch", type=whole(1, 2**31), default=1)
    call.add_argument("--heads", type=whole(1, MOST_HEADS), default=8, help="of query; 8")
    for name in ("key", "value"):
        call.add_argument(
            f"--{name}-heads", type=whole(1, MOST_HEADS), help=f"of {name}; as many as of query"
        )
    call.add_argument("--head-dim", type=whole(1, MOST_WIDTH), default=64, help="64")
    call.add_argument("--value-dim", type=whole(1, MOST_WIDTH), help="as head-dim")
    call.add_argument("--dtype", choices=list(DTYPES), default="float32")
    call.add_argument("--causal", action="store_true")
    call.add_argument(
        "--window",
        nargs=2,
        type=whole(-1, LONGEST),
        metavar=("LEFT", "RIGHT"),
        help="keys before and after its own that a query attends; -1: all",
    )
    call.add_argument(
        "--load-balance",
        choices=("none", "zigzag"),
        help="only this one; by default, of a causal call both",
    )
    call.add_argument("--forward-only", action="store_true", help="without the backward")
    rates = found.add_argument_group("a process and its link")
    rates.add_argument(
        "--threads", type=whole(1, MOST_THREADS), default=1, help="of a process, for measuring; 1"
    )
    for name in ("forward", "backward"):
        rates.add_argument(
            f"--{name}-rate", type=number(), help="FLOP/s of a process; measured here"
        )
    rates.add_argument(
        "--call", type=number(zero=True), help="seconds of a call of the operator besides its FLOPs"
    )
    rates.add_argument(
        "--bandwidth",
        type=number(),
        default=BANDWIDTH,
        help=f"bytes per second in and out of a process; {BANDWIDTH:g}",
    )
    rates.add_argument(
        "--latency", type=number(zero=True), default=LATENCY, help=f"seconds; {LATENCY:g}"
    )
    rates.add_argument("--memory", type=number(), help="bytes that a process has for tensors")
    return found


def parse(arguments: Sequence[str] | None, description: str | None) -> Options:
    """The options; an invalid one prints what was expected, and exits with status 2."""
    parser = _parser(description)
    found = parser.parse_args(arguments, namespace=Options())
    found.key_heads = found.key_heads or found.heads
    found.value_heads = found.value_heads or found.heads
    found.value_dim = found.value_dim or found.head_dim
    for name in ("key", "value"):
        count = getattr(found, f"{name}_heads")
        if found.heads % count != 0:
            parser.error(
                f"expected --heads as a multiple of --{name}-heads, got {found.heads} and {count}"
            )
    return found
