"""Attention problems: a description (`Spec`) and the tensors made from it (`Problem`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64]
DTYPES_16BIT = [torch.bfloat16, torch.float16]  # computed in float32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype the kernels compute in, which is that of lse."""
    return torch.float32 if dtype in DTYPES_16BIT else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32, for test ids."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Spec:
    """A problem to test. `bias`, `mask`, `alibi` and `sinks` name axes: "1H1S" is
    [1, heads, 1, keys]."""

    batch: int = 2
    heads: int = 4
    key_heads: int | None = None
    value_heads: int | None = None
    queries: int = 19
    keys: int = 33
    head_dim: int = 8
    value_dim: int = 12
    rank: int = 4
    layout: str = "contiguous"
    bias: str | None = None
    mask: str | None = None
    bias_grad: bool = True
    excluded_by_bias: bool = False
    causal: bool = False
    positions: str | None = None
    window: tuple[int, int] | None = None
    alibi: str | None = None
    softcap: float = 0.0
    sinks: str | None = None
    scale: float | None = None
    dropout: float = 0.0
    block_size: int = 64
    use_simd: bool = True

    def axis(self, letter: str) -> int:
        """Length of the axis named `letter`."""
        sizes = {"B": self.batch, "H": self.heads, "L": self.queries, "S": self.keys, "1": 1}
        return sizes[letter]


@dataclass
class Problem:
    """Inputs, options and output gradients of one call.

    inputs: query, key, value and, if in the spec, bias, alibi_slopes and sinks, in the order of the
    operator's arguments. options: the other keyword arguments. differentiable: the names of the
    inputs that require a gradient.
    """

    inputs: dict[str, Tensor]
    options: dict[str, Any]
    differentiable: tuple[str, ...]
    grad_out: Tensor
    grad_lse: Tensor
    seed: int = 0
    spec: Spec = field(default_factory=Spec)

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs["query"].dtype

    def leaves(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """New leaves with the strides of the inputs; floating ones are cast to `dtype`."""
        leaves = {}
        for name, tensor in self.inputs.items():
            leaf = tensor.detach()
            if dtype is not None and leaf.is_floating_point():
                leaf = leaf.to(dtype)
            leaves[name] = leaf.requires_grad_(name in self.differentiable)
        return leaves

    def dropout_shape(self) -> tuple[int, int, int, int]:
        """[B, H, L, S] of the dropout mask; H = 1 for 3-D inputs."""
        query, key = self.inputs["query"], self.inputs["key"]
        heads = query.size(1) if query.dim() == 4 else 1
        return query.size(0), heads, query.size(-2), key.size(-2)


def lay_out(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> Tensor:
    """Standard normal float64 values of `shape` in the named memory layout."""
    if layout == "contiguous":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if layout == "transposed":  # heads (3-D: batch) inside the length, as after a projection
        swapped = list(shape)
        swapped[-3], swapped[-2] = swapped[-2], swapped[-3]
        return torch.randn(swapped, generator=generator, dtype=torch.float64).transpose(-3, -2)
    if layout == "expanded":
        one = torch.randn((1, *shape[1:]), generator=generator, dtype=torch.float64)
        return one.expand(shape)
    if layout == "last-dim-strided":
        wide = torch.randn((*shape[:-1], 2 * shape[-1]), generator=generator, dtype=torch.float64)
        return wide[..., ::2]
    if layout == "column-major":
        if len(shape) == 1:  # a vector has one order
            return torch.randn(shape, generator=generator, dtype=torch.float64)
        swapped = (*shape[:-2], shape[-1], shape[-2])
        return torch.randn(swapped, generator=generator, dtype=torch.float64).transpose(-1, -2)
    if layout == "offset":  # one element off any alignment
        flat = torch.randn(math.prod(shape) + 1, generator=generator, dtype=torch.float64)
        return flat[1:].view(shape)
    raise ValueError(f"unknown layout {layout!r}")


def cast_keeping_strides(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` with the same strides; an expanded axis stays expanded."""
    if tensor.dtype == dtype or tensor.numel() == 0:
        return tensor.to(dtype)
    extent = 1 + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 0
    )
    storage = tensor.new_zeros(tensor.storage_offset() + extent, dtype=dtype)
    storage.copy_(tensor.as_strided(storage.shape, (1,), 0))
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def make_problem(spec: Spec, dtype: torch.dtype, seed: int = 0) -> Problem:
    """Standard normal inputs and output gradients for `spec`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return cast_keeping_strides(lay_out(shape, spec.layout, generator), dtype)

    def axes(letters: str) -> tuple[int, ...]:
        if spec.rank == 3:  # no heads axis: drop the third from the right, or replace it by B
            letters = (
                letters[:-3] + letters[-2:] if len(letters) == 4 else letters.replace("H", "B")
            )
        return tuple(spec.axis(letter) for letter in letters)

    query_heads = spec.heads if spec.rank == 4 else 1
    key_heads = spec.key_heads or spec.heads
    value_heads = spec.value_heads or spec.heads
    if spec.rank == 3:
        query = random(spec.batch, spec.queries, spec.head_dim)
        key = random(spec.batch, spec.keys, spec.head_dim)
        value = random(spec.batch, spec.keys, spec.value_dim)
    else:
        query = random(spec.batch, spec.heads, spec.queries, spec.head_dim)
        key = random(spec.batch, key_heads, spec.keys, spec.head_dim)
        value = random(spec.batch, value_heads, spec.keys, spec.value_dim)
    inputs = {"query": query, "key": key, "value": value}
    differentiable = ["query", "key", "value"]

    if spec.bias is not None:
        bias = torch.randn(axes(spec.bias), generator=generator, dtype=torch.float64)
        if spec.excluded_by_bias:
            excluded = torch.rand(bias.shape, generator=generator, dtype=torch.float64) < 0.3
            bias = bias.masked_fill(excluded, -math.inf)
        inputs["bias"] = bias.to(dtype)
        if spec.bias_grad:
            differentiable.append("bias")
    elif spec.mask is not None:
        inputs["bias"] = torch.rand(axes(spec.mask), generator=generator) < 0.7

    if spec.alibi is not None:
        # From 0.02 to 0.5, within the range of the ALiBi paper (Press et al., 2022) for 8 heads:
        # near and far keys both keep some weight.
        shape = (spec.batch, query_heads) if spec.alibi == "BH" else (query_heads,)
        slopes = 2.0 ** (-1 - 5 * torch.rand(shape, generator=generator, dtype=torch.float64))
        inputs["alibi_slopes"] = slopes.to(dtype)
        differentiable.append("alibi_slopes")
    if spec.sinks is not None:
        shape = (spec.batch, query_heads) if spec.sinks == "BH" else (query_heads,)
        sinks = torch.randn(shape, generator=generator, dtype=torch.float64)
        inputs["sinks"] = sinks.to(dtype)
        differentiable.append("sinks")

    options: dict[str, Any] = {
        "causal": spec.causal,
        "window": spec.window,
        "softcap": spec.softcap,
        "scale": spec.scale,
        "dropout": spec.dropout,
        "block_size": spec.block_size,
        "use_simd": spec.use_simd,
    }
    if spec.positions is not None:
        # -1 attends nothing, S - 1 and S attend everything.
        options["query_positions"] = torch.randint(
            -1, spec.keys + 1, axes(spec.positions + "1")[:-1], generator=generator
        )
    lse_shape = query.shape[:-1]
    grad_out = torch.randn((*lse_shape, spec.value_dim), generator=generator, dtype=torch.float64)
    grad_lse = torch.randn(lse_shape, generator=generator, dtype=torch.float64)
    return Problem(
        inputs,
        options,
        tuple(differentiable),
        grad_out.to(dtype),
        grad_lse.to(compute_dtype(dtype)),
        seed,
        spec,
    )


# Every option of the operator, by group. Variants of one group exclude each other.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bias": {
        "bias-BHLS": {"bias": "BHLS"},
        "bias-B1LS": {"bias": "B1LS"},
        "bias-1H1S": {"bias": "1H1S"},
        "bias-BHL1": {"bias": "BHL1"},
        "bias-HLS": {"bias": "HLS"},
        "bias-LS": {"bias": "LS"},
        "bias-S": {"bias": "S"},
        "bias-scalar": {"bias": ""},
        "bias-without-gradient": {"bias": "BHLS", "bias_grad": False},
        "bias-minus-infinity": {"bias": "BHLS", "excluded_by_bias": True},
        "mask-BHLS": {"mask": "BHLS"},
        "mask-B11S": {"mask": "B11S"},
        "mask-LS": {"mask": "LS"},
        "mask-L1": {"mask": "L1"},
    },
    "causal": {
        "causal": {"causal": True},
        "causal-positions-L": {"causal": True, "positions": "L"},
        "causal-positions-BHL": {"causal": True, "positions": "BHL"},
        "positions-alone": {"positions": "L"},
    },
    # 19 queries are at positions 14 to 32 of 33 keys. The windows: left, right, both sides, the
    # diagonal, and wider than all keys.
    "window": {
        "window-left": {"window": (6, -1)},
        "window-right": {"window": (-1, 3)},
        "window": {"window": (9, 4)},
        "window-diagonal": {"window": (0, 0)},
        "window-unbounded": {"window": (2**62, -1)},
    },
    "alibi": {"alibi-H": {"alibi": "H"}, "alibi-BH": {"alibi": "BH"}},
    # Scores are standard normal: the cap affects most of them, few of them, or saturates all.
    "softcap": {
        "softcap": {"softcap": 1.5},
        "softcap-large": {"softcap": 20.0},
        "softcap-small": {"softcap": 0.4},
    },
    "sinks": {"sinks-H": {"sinks": "H"}, "sinks-BH": {"sinks": "BH"}},
    "scale": {
        "scale-zero": {"scale": 0.0},
        "scale-negative": {"scale": -0.4},
        "scale-large": {"scale": 3.0},
    },
    "dropout": {"dropout": {"dropout": 0.3}, "dropout-all": {"dropout": 1.0}},
    "block": {
        "block-1": {"block_size": 1},
        "block-7": {"block_size": 7},
        "block-100": {"block_size": 100},
        "block-huge": {"block_size": 10**9},
    },
    "simd": {"no-simd": {"use_simd": False}},
    "heads": {
        "one-kv-head": {"key_heads": 1, "value_heads": 1},
        "kv-heads-2x4": {"key_heads": 2},
        "kv-heads-4x1": {"value_heads": 1},
        "kv-heads-1x2": {"key_heads": 1, "value_heads": 2},
    },
    "rank": {"three-dimensional": {"rank": 3}},
    "layout": {
        name: {"layout": name}
        for name in ("transposed", "expanded", "last-dim-strided", "column-major", "offset")
    },
    "lengths": {
        "more-queries": {"queries": 37, "keys": 9},
        "one-query": {"queries": 1},
        "narrow-value": {"value_dim": 3},
    },
}


def single_variants() -> dict[str, Spec]:
    """The plain problem and each variant by itself, by name."""
    specs = {"plain": Spec()}
    for group in VARIANTS.values():
        specs |= {name: replace(Spec(), **changes) for name, changes in group.items()}
    return specs


def are_compatible(groups: set[str]) -> bool:
    """Whether variants of these groups can be combined: a 3-D problem has no heads."""
    return not {"heads", "rank"} <= groups


def variant_pairs() -> Iterator[tuple[str, Spec]]:
    """Every pair of variants from different, compatible groups."""
    for first, second in itertools.combinations(VARIANTS, 2):
        if not are_compatible({first, second}):
            continue
        for (a, change), (b, other) in itertools.product(
            VARIANTS[first].items(), VARIANTS[second].items()
        ):
            yield f"{a}-{b}", replace(Spec(), **change, **other)
