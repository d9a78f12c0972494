"""The calls that are timed in turns at a point of `points.py`, by candidate name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flash_attention  # noqa: F401  (registers torch.ops.flash)
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attention import workload
from bench.attention.points import Point, has_standard, narrow_width

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
    """`attention(*inputs, **options)` in one direction, with gradients of `inputs` and `wanted`."""
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
    """Query, key and value [B, H, L, D]; they require gradients unless the point is "forward"."""
    shape = (point.batch, point.heads, point.length, point.head_dim)
    grad = point.direction != "forward"
    return workload.qkv(shape, getattr(torch, point.dtype), grad=grad)


def rivals(point: Point) -> dict[str, Call]:
    """Flash, torch and, where `has_standard`, standard attention."""
    inputs = plain_inputs(point)
    flash = step(torch.ops.flash.attention, inputs, point.direction, {"causal": point.causal})
    torch_own = {"is_causal": point.causal}
    calls = {
        "flash": flash,
        "torch": step(F.scaled_dot_product_attention, inputs, point.direction, torch_own),
    }
    if has_standard(point):
        mask = workload.causal_mask(point.length, inputs[0].dtype) if point.causal else None
        calls["standard"] = step(workload.textbook, inputs, point.direction, {"mask": mask})
    return calls


def with_option(point: Point) -> tuple[tuple[Tensor, ...], dict, dict, tuple[Tensor, ...]]:
    """Inputs, keywords for flash and for torch, and further tensors whose gradient is wanted."""
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
        case "bias gradient":  # one [L, L] for each head
            bias = leaf(1, heads, length, length)
            flash["bias"] = other["attn_mask"] = bias
            wanted = (bias,)
        case "boolean mask":  # 90 % attended, and the diagonal
            mask = torch.rand(length, length) < 0.9
            flash["bias"] = other["attn_mask"] = mask.logical_or(torch.eye(length).bool())
        case "value width":
            value = leaf(batch, heads, length, narrow_width(width))
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
            raise ValueError(f"expected one of points.OPTIONS, got {unknown!r}")
    return (query, key, value), flash, other, wanted


def option_against_torch(point: Point) -> dict[str, Call]:
    """Flash and torch, both with the option."""
    inputs, flash, other, wanted = with_option(point)
    own = step(torch.ops.flash.attention, inputs, point.direction, flash, wanted)
    torch_own = step(F.scaled_dot_product_attention, inputs, point.direction, other, wanted)
    return {"flash": own, "torch": torch_own}


def option_against_plain(point: Point) -> dict[str, Call]:
    """Flash without the option, the subject, and with it."""
    inputs, flash, _, wanted = with_option(point)
    plain = {"causal": point.causal}
    attention = torch.ops.flash.attention
    return {
        "plain": step(attention, plain_inputs(point), point.direction, plain),
        "option": step(attention, inputs, point.direction, flash, wanted),
    }


def block_sizes(point: Point) -> dict[str, Call]:
    """The default block size, fixed ones, and ceil(sqrt(length))."""
    inputs = plain_inputs(point)

    def sized(options: dict[str, Any]) -> Call:
        return step(torch.ops.flash.attention, inputs, point.direction, options)

    calls = {"default": sized({})}
    calls |= {str(size): sized({"block_size": size}) for size in BLOCK_SIZES}
    return calls | {"sqrt(L)": sized({"block_size": math.ceil(math.sqrt(point.length))})}


def threads(point: Point) -> dict[str, Call]:
    """Two threads, the subject, and one; the process needs two cores."""
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
    attention = torch.ops.flash.attention
    return {
        "window": step(attention, inputs, point.direction, {"window": point.sides}),
        "full": step(attention, inputs, point.direction),
    }


def float32_parts(point: Point) -> dict[str, Call]:
    """Flash with six products and with three, on AVX-512, and torch.

    The process must have FLASH_ATTENTION_ISA=amx, which asks for the six.
    """
    inputs = plain_inputs(point)
    flash = step(torch.ops.flash.attention, inputs, point.direction)

    def on(isa: str, precision: str, call: Call) -> Call:
        def run() -> object:
            torch.ops.flash._use_isa(isa)
            torch.set_float32_matmul_precision(precision)
            try:
                return call()
            finally:
                torch.set_float32_matmul_precision("highest")
                torch.ops.flash._use_isa("amx")

        return run

    rival = step(F.scaled_dot_product_attention, inputs, point.direction)
    return {
        "six products": on("amx", "highest", flash),
        "three products": on("amx", "high", flash),
        "avx512": on("avx512", "highest", flash),
        "torch": on("amx", "highest", rival),
    }


def decode(point: Point) -> dict[str, Call]:
    """Flash and torch with one query, and a copy that moves as many bytes as keys and values."""
    _, key, value = plain_inputs(point)
    query = torch.randn(point.batch, point.heads, 1, point.head_dim, dtype=key.dtype)
    # Half of the bytes, because each is read and written. Not zeros: those would share one page.
    source = torch.ones_like(key)
    target = torch.empty_like(source)

    def threaded(call: Call) -> Call:
        def run() -> object:
            torch.set_num_threads(point.threads)
            return call()

        return run

    return {
        "flash": threaded(lambda: torch.ops.flash.attention(query, key, value)),
        "torch": threaded(lambda: F.scaled_dot_product_attention(query, key, value)),
        "copy": threaded(lambda: target.copy_(source)),
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
    "float32 parts": float32_parts,
    "decode": decode,
}


def calls(point: Point) -> dict[str, Call]:
    """The candidates of this point, the subject first."""
    return BUILDERS[point.group](point)
