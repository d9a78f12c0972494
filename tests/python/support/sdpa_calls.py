"""Calls of `scaled_dot_product_attention`: inputs, the operators that ran, and the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from support.instruction_sets import WITH_TILES, active
from support.problems import DTYPES_16BIT, compute_dtype
from support.tolerances import (
    ABSOLUTE_16BIT,
    SDPA_FLOAT32_SCORE_ROUNDINGS,
    SDPA_FLOAT32_TIMES_TORCH,
    SDPA_FLOAT64_RELATIVE,
    TILE_SIZE_ROUNDED,
    UNIT_ROUNDOFF,
)

OURS = "flash::attention"


def operators(call: Callable[[], object]) -> set[str]:
    """The names of all operators that ran in `call`, including nested ones and below autograd."""
    with torch.autograd.profiler.profile() as profile:
        call()
    return {event.name for event in profile.function_events}


def runs_ours(call: Callable[[], object]) -> bool:
    """Whether `call` ran this project's kernels."""
    return not operators(call).isdisjoint({OURS, "flash::_forward"})


@dataclass
class Call:
    """Arguments of one call; the tensors that require a gradient get one."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def to(self, dtype: torch.dtype) -> Call:
        """New leaves; floating ones are cast to `dtype`."""

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            copy = value.detach().to(dtype if value.is_floating_point() else value.dtype)
            return copy.requires_grad_(value.requires_grad)

        return Call(**{name: leaf(value) for name, value in vars(self).items()})

    def results(self, function: Callable[..., Tensor]) -> dict[str, Tensor]:
        """The output of `function`, and its gradients for a random output gradient."""
        own = self.to(self.query.dtype)
        out = function(**vars(own))
        found = {"out": out.detach()}
        leaves = {n: t for n, t in vars(own).items() if isinstance(t, Tensor) and t.requires_grad}
        if leaves:
            generator = torch.Generator().manual_seed(0)
            grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
            grad = grad.bfloat16().to(out.dtype)  # the same values in every dtype
            found |= zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True)
        return found


def largest(*tensors: Tensor) -> float:
    """The largest magnitude of any element; 0 if there are none."""
    return max((t.detach().abs().max().item() for t in tensors if t.numel()), default=0.0)


@dataclass
class Reference:
    """torch's results for a call, in float64 and in the dtype of the call."""

    exact: dict[str, Tensor]
    same_dtype: dict[str, Tensor]

    @staticmethod
    def of(call: Call) -> Reference:
        torchs = F.scaled_dot_product_attention
        return Reference(call.to(torch.float64).results(torchs), call.results(torchs))


def assert_close_to_reference(
    call: Call, function: Callable[..., Tensor], reference: Reference, slack: float = 1.0
) -> None:
    """Output and gradients of `function` match the reference up to rounding times `slack`."""
    dtype = call.query.dtype
    actual = call.results(function)
    inputs = (call.query, call.key, call.value)
    score = largest(call.query) * largest(call.key) * call.query.size(-1) ** 0.5
    assert actual.keys() == reference.exact.keys()
    for name, expected in reference.exact.items():
        assert actual[name].shape == expected.shape, name
        assert actual[name].dtype == dtype, name
        error = largest(actual[name].double() - expected)
        size = max(1.0, largest(expected, *inputs))
        if dtype == torch.float64:
            allowed = SDPA_FLOAT64_RELATIVE * size
        else:
            single = UNIT_ROUNDOFF[compute_dtype(dtype)]
            floor = SDPA_FLOAT32_SCORE_ROUNDINGS * single * max(1.0, score) * size
            if dtype in DTYPES_16BIT:  # the result is rounded once more
                floor += UNIT_ROUNDOFF[dtype] * largest(expected) + ABSOLUTE_16BIT[dtype]
            if dtype == torch.bfloat16 and active() in WITH_TILES:
                floor += TILE_SIZE_ROUNDED * size
            same_dtype = largest(reference.same_dtype[name].double() - expected)
            allowed = max(floor, SDPA_FLOAT32_TIMES_TORCH * same_dtype)
        assert error <= slack * allowed, f"{name}: error {error:.3g}, allowed {slack * allowed:.3g}"


def assert_close_to_torch(call: Call, function: Callable[..., Tensor]) -> None:
    """Output and gradients of `function` match torch's in float64 up to rounding."""
    assert_close_to_reference(call, function, Reference.of(call))
