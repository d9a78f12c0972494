"""The calls that take turns at a point of `points.py`, by the name of each candidate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flash_attention  # noqa: F401  (registers torch.ops.flash)
import measure
import torch
import torch.nn.functional as F
from points import Point, has_standard
from torch import Tensor

Call = Callable[[], object]
Attention = Callable[..., Tensor]

DROPOUT = 0.1
BLOCK_SIZES = (32, 64, 128, 256)


def step(
    attention: Attention,
    inputs: tuple[Tensor, ...],
    direction: str,
    options: dict[str, Any] | None = None,
    wanted: tuple[Tensor, ...] = (),
) -> Call:
    """`attention(*inputs, **options)` in one direction; gradients of the inputs and of `wanted`."""
    options = options or {}
    if direction in ("forward", "recorded"):
        return lambda: attention(*inputs, **options)
    leaves = (*inputs, *wanted)
    out = attention(*inputs, **options)
    grad = torch.ones_like(out, memory_format=torch.contiguous_format)
    if direction == "backward":
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
    return lambda: torch.autograd.grad(attention(*inputs, **options), leaves, grad)


def plain_inputs(point: Point) -> tuple[Tensor, ...]:
    """Query, key and value [B, H, L, D], as leaves unless nothing is recorded."""
    shape = (point.batch, point.heads, point.length, point.head_dim)
    grad = point.direction != "forward"
    return measure.qkv(shape, getattr(torch, point.dtype), grad=grad)


def rivals(point: Point) -> dict[str, Call]:
    """Flash, torch's own and, where the point asks for it, standard attention."""
    inputs = plain_inputs(point)
    flash = step(torch.ops.flash.attention, inputs, point.direction, {"causal": point.causal})
    torch_own = {"is_causal": point.causal}
    calls = {
        "flash": flash,
        "torch": step(F.scaled_dot_product_attention, inputs, point.direction, torch_own),
    }
    if has_standard(point):
        mask = measure.causal_mask(point.length, inputs[0].dtype) if point.causal else None
        calls["standard"] = step(measure.textbook, inputs, point.direction, {"mask": mask})
    return calls


def with_option(point: Point) -> tuple[tuple[Tensor, ...], dict, dict, tuple[Tensor, ...]]:
    """Inputs, flash's and torch's keywords, and whose gradient is wanted beside the inputs'."""
    batch, heads, length, width = point.batch, point.heads, point.length, point.head_dim
    query, key, value = plain_inputs(point)
    flash: dict[str, Any] = {"causal": point.causal}
    other: dict[str, Any] = {}
    wanted: tuple[Tensor, ...] = ()

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=query.dtype, requires_grad=True)

    match point.option:
        case "dropout":
            flash["dropout"] = other["dropout_p"] = DROPOUT
        case "bias gradient":  # one [L, L] for every head
            bias = leaf(1, heads, length, length)
            flash["bias"] = other["attn_mask"] = bias
            wanted = (bias,)
        case "boolean mask":  # nine in ten are attended, and each position itself
            mask = torch.rand(length, length) < 0.9
            flash["bias"] = other["attn_mask"] = mask.logical_or(torch.eye(length).bool())
        case "value width":
            value = leaf(batch, heads, length, width // 2)
        case "3-D":
            query, key, value = (leaf(heads, length, width) for _ in range(3))
        case "grouped heads":
            key, value = (leaf(batch, 2, length, width) for _ in range(2))
            other["enable_gqa"] = True
        case "query positions":
            flash["query_positions"] = torch.arange(length)
            other["is_causal"] = True
        case "strided heads":
            query, key, value = (
                leaf(batch, length, heads, width).transpose(1, 2) for _ in range(3)
            )
        case unknown:
            raise ValueError(f"expected an option of points.OPTIONS, got {unknown!r}")
    return (query, key, value), flash, other, wanted


def option_against_torch(point: Point) -> dict[str, Call]:
    """Both with the option."""
    inputs, flash, other, wanted = with_option(point)
    own = step(torch.ops.flash.attention, inputs, point.direction, flash, wanted)
    torch_own = step(F.scaled_dot_product_attention, inputs, point.direction, other, wanted)
    return {"flash": own, "torch": torch_own}


def option_against_plain(point: Point) -> dict[str, Call]:
    """Flash with the option over flash without: the plain call is the subject."""
    inputs, flash, _, wanted = with_option(point)
    plain = {"causal": point.causal}
    attention = torch.ops.flash.attention
    return {
        "plain": step(attention, plain_inputs(point), point.direction, plain),
        "option": step(attention, inputs, point.direction, flash, wanted),
    }


def block_sizes(point: Point) -> dict[str, Call]:
    """The default, fixed block sizes, and the square root of the length, rounded up."""
    inputs = plain_inputs(point)

    def sized(options: dict[str, Any]) -> Call:
        return step(torch.ops.flash.attention, inputs, point.direction, options)

    calls = {"default": sized({})}
    calls |= {str(size): sized({"block_size": size}) for size in BLOCK_SIZES}
    return calls | {"sqrt(L)": sized({"block_size": math.ceil(math.sqrt(point.length))})}


def threads(point: Point) -> dict[str, Call]:
    """Two threads, the subject, and one; the process has to have two cores."""
    attention = step(torch.ops.flash.attention, plain_inputs(point), point.direction)

    def on(count: int) -> Call:
        def call() -> object:
            torch.set_num_threads(count)
            return attention()

        return call

    return {"two threads": on(2), "one thread": on(1)}


def window(point: Point) -> dict[str, Call]:
    """Flash with a window, the subject, and with all keys."""
    inputs = plain_inputs(point)
    width = int(point.option.removeprefix("window "))
    attention = torch.ops.flash.attention
    sides = {"window": (width // 2, width - width // 2 - 1)}
    return {
        "window": step(attention, inputs, point.direction, sides),
        "full": step(attention, inputs, point.direction),
    }


def decode(point: Point) -> dict[str, Call]:
    """One query over all keys, torch's, and a copy that moves as many bytes as they have."""
    _, key, value = plain_inputs(point)
    query = torch.randn(point.batch, point.heads, 1, point.head_dim, dtype=key.dtype)
    # Half of the bytes, as they are read and written. Not zeros, which would be one page of memory.
    source = torch.ones_like(key)
    target = torch.empty_like(source)

    def on_two_threads(call: Call) -> Call:
        def run() -> object:
            torch.set_num_threads(2)
            return call()

        return run

    return {
        "flash": on_two_threads(lambda: torch.ops.flash.attention(query, key, value)),
        "torch": on_two_threads(lambda: F.scaled_dot_product_attention(query, key, value)),
        "copy": on_two_threads(lambda: target.copy_(source)),
    }


BUILDERS: dict[str, Callable[[Point], dict[str, Call]]] = {
    "grid": rivals,
    "own shape": rivals,
    "forecast": rivals,
    "overhead": rivals,
    "option/torch": option_against_torch,
    "option/plain": option_against_plain,
    "block size": block_sizes,
    "threads": threads,
    "window": window,
    "decode": decode,
}


def calls(point: Point) -> dict[str, Call]:
    """What takes turns at this point, the subject first."""
    return BUILDERS[point.group](point)
