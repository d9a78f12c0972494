"""Calls of context parallelism that differ between processes where they may, and its types."""

from __future__ import annotations

from typing import Any

import flash_attention
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from support.process_pool import ProcessPool
from support.tolerances import FLOAT64_ABSOLUTE

pytestmark = pytest.mark.once

METHODS = ["ring", "all_gather", "ulysses"]
ROWS = 12


def whole_sequence() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, 4, 2 * ROWS, 8, generator=generator, dtype=torch.float64)


def own_rows(x: Tensor) -> Tensor:
    return x[:, :, dist.get_rank() * ROWS :][:, :, :ROWS]


class NoGradient(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


# The share of a process in the loss, from its rows of the output and of lse.
LOSSES = {
    "out": lambda out, lse: out.square().sum(),
    "lse": lambda out, lse: lse.square().sum(),
    "both": lambda out, lse: out.square().sum() + lse.sum(),
    "neither": lambda out, lse: NoGradient.apply(out).sum(),
}


def losses_of_kinds(method: str, kinds: tuple[str, str]) -> None:
    from flash_attention.distributed import context_parallel_attention_with_lse

    whole = whole_sequence().requires_grad_()
    own = own_rows(whole.detach()).clone().requires_grad_()
    out, lse = context_parallel_attention_with_lse(own, own, own, method=method)
    LOSSES[kinds[dist.get_rank()]](out, lse).backward()
    out, lse = flash_attention.attention_with_lse(whole, whole, whole)
    shares = [
        LOSSES[kind](out[:, :, i * ROWS :][:, :, :ROWS], lse[:, :, i * ROWS :][:, :, :ROWS])
        for i, kind in enumerate(kinds)
    ]
    sum(shares).backward()
    assert own.grad is not None and whole.grad is not None
    torch.testing.assert_close(
        own.grad, own_rows(whole.grad), rtol=FLOAT64_ABSOLUTE, atol=FLOAT64_ABSOLUTE
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kinds", [("lse", "out"), ("out", "both"), ("neither", "out"), ("lse", "neither")], ids=str
)
def test_losses_of_different_kinds(
    two_processes: ProcessPool, method: str, kinds: tuple[str, str]
) -> None:
    two_processes.run(losses_of_kinds, method, kinds)


def frozen_rows(method: str) -> None:
    """Only slopes and sinks have gradients."""
    from flash_attention.distributed import context_parallel_attention

    whole = whole_sequence()
    own = own_rows(whole)
    given = [torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) for _ in range(2)]
    found = []
    for function, x, options in (
        (context_parallel_attention, own, {"method": method}),
        (flash_attention.attention, whole, {}),
    ):
        slopes, sinks = (g.clone().requires_grad_() for g in given)
        function(x, x, x, alibi_slopes=slopes, sinks=sinks, **options).square().sum().backward()
        found.append((slopes.grad, sinks.grad))
    for gradient in found[0]:
        dist.all_reduce(gradient)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=FLOAT64_ABSOLUTE, atol=FLOAT64_ABSOLUTE)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_slopes_and_sinks_alone(two_processes: ProcessPool, method: str) -> None:
    two_processes.run(frozen_rows, method)


def backwards_in_other_orders(rows: tuple[int, int]) -> str:
    from flash_attention.distributed import context_parallel_attention

    inputs = [torch.ones(1, 2, n, 8, requires_grad=True) for n in rows]
    losses = [context_parallel_attention(x, x, x).sum() for x in inputs]
    try:
        for loss in losses if dist.get_rank() == 0 else losses[::-1]:
            loss.backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("rows", [(10, 10), (10, 50)], ids=str)
def test_backwards_in_other_orders_are_an_error(rows: tuple[int, int]) -> None:
    """And not the gradients of one call for the other, or the end of a process."""
    with ProcessPool(2, group_seconds=2.0) as pool:
        for error in pool.run(backwards_in_other_orders, rows):
            assert "has not made the same calls in the same order" in error


def numbers_of_numpy() -> None:
    from flash_attention.distributed import context_parallel_attention

    own = own_rows(whole_sequence())
    options = {"window": (3, 0), "softcap": 1.5, "scale": 0.5}
    expected = context_parallel_attention(own, own, own, **options)
    window = (np.int64(3), np.int32(0))
    floats = {"softcap": np.float64(1.5), "scale": np.float32(0.5)}
    assert torch.equal(context_parallel_attention(own, own, own, window=window, **floats), expected)


def test_numbers_of_numpy(two_processes: ProcessPool) -> None:
    two_processes.run(numbers_of_numpy)


def test_a_digest_needs_no_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package does not require it."""
    from flash_attention.distributed.agreement import digest

    def absent(tensor: Tensor) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(Tensor, "numpy", absent)
    found = digest(torch.tensor([0.5, 1.0]))
    assert found.startswith("float32 [2] with hash ")
    assert found != digest(torch.tensor([0.5, 2.0]))
