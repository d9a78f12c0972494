"""varlen_attention does not support vmap, torch.func and forward mode; errors name an alternative.

By default, torch would run a loop with a warning, or give zero tangents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from flash_attention import varlen_attention
from torch import Tensor

STARTS = torch.tensor([0, 2, 6])


def call(rows: Tensor) -> Tensor:
    return varlen_attention(rows, rows, rows, STARTS, STARTS)


def dual(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        return function(torch.autograd.forward_ad.make_dual(rows, torch.ones_like(rows)))


def tangent_of(name: str, rows: Tensor) -> Tensor:
    """The tangent of a call in which only one argument has a tangent."""
    fixed = {n: rows for n in ("query", "key", "value")}
    fixed |= {"cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS}

    def of(x: Tensor) -> Tensor:
        return varlen_attention(**fixed | {name: x})

    x = fixed.get(name, torch.ones(2))
    return torch.func.jvp(of, (x,), (torch.ones_like(x),))[1]


TRANSFORMS: dict[str, Callable[[Tensor], object]] = {
    "vmap": lambda x: torch.vmap(call)(x.expand(3, *x.shape)),
    "vmap-of-nothing": lambda x: torch.vmap(call)(x.expand(0, *x.shape)),
    "vmap-nested": lambda x: torch.vmap(torch.vmap(call))(x.expand(3, 2, *x.shape)),
    "vmap-of-offsets": lambda x: torch.vmap(lambda s: varlen_attention(x, x, x, s, s))(
        STARTS.expand(3, 3)
    ),
    "vmap-of-grad": lambda x: torch.vmap(torch.func.grad(lambda y: call(y).sum()))(
        x.expand(3, *x.shape)
    ),
    "grad": torch.func.grad(lambda x: call(x).sum()),
    "jacrev": torch.func.jacrev(call),
    "jvp": lambda x: torch.func.jvp(call, (x,), (x,)),
    "jacfwd": torch.func.jacfwd(call),
    "jvp-of-query": functools.partial(tangent_of, "query"),
    "jvp-of-key": functools.partial(tangent_of, "key"),
    "jvp-of-value": functools.partial(tangent_of, "value"),
    "jvp-of-slopes": functools.partial(tangent_of, "alibi_slopes"),
    "jvp-of-sinks": functools.partial(tangent_of, "sinks"),
    "dual": lambda x: dual(call, x),
    "dual-and-gradients": lambda x: dual(call, x.clone().requires_grad_()),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_unsupported_transforms_raise(transform: Callable[[Tensor], object]) -> None:
    rows = torch.randn(6, 2, 4)
    message = r"^flash::varlen_attention: expected .*, which is not implemented; call flash::attent"
    with pytest.raises(NotImplementedError, match=message) as caught:
        transform(rows)
    assert type(caught.value) is NotImplementedError


@pytest.mark.parametrize("name", ["_varlen_forward", "_varlen_backward"])
def test_private_operators_refuse_vmap(name: str) -> None:
    rows = torch.randn(3, 6, 2, 4)

    def of(x: Tensor) -> object:
        if name == "_varlen_forward":
            return torch.ops.flash._varlen_forward(x, x, x, STARTS, STARTS)
        return torch.ops.flash._varlen_backward(
            x, x, x, x, STARTS, STARTS, x, x, STARTS, None, False, None, None, None, 0.0, None,
            None, 0.0, 64, True, [True] * 5,
        )  # fmt: skip

    with pytest.raises(NotImplementedError, match=f"^flash::{name}: expected tensors that are not"):
        torch.vmap(of)(rows)


def test_call_on_constants_inside_a_transform_works() -> None:
    rows = torch.randn(6, 2, 4)
    expected = call(rows)
    found = torch.func.grad(lambda x: (x * call(rows)).sum())(torch.ones_like(expected))
    assert torch.equal(found, expected)
    assert torch.equal(torch.vmap(lambda x: x * call(rows))(torch.ones(2, 1))[1], expected)
