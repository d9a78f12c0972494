"""torch.vmap over a dimension of size 0, and over calls with batch size 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.forked import run_forked

BATCH, HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 2, 2, 3, 5, 4, 6
SIZES = {"q": (HEADS, QUERIES, WIDTH), "k": (HEADS, KEYS, WIDTH), "v": (HEADS, KEYS, VALUE_WIDTH)}

# Shapes of one call's options, after the batch.
OPTIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "none": {},
    "bias-BHLS": {"bias": (-1, HEADS, QUERIES, KEYS)},
    "bias-1HLS": {"bias": (1, HEADS, QUERIES, KEYS)},
    "bias-LS": {"bias": (QUERIES, KEYS)},
    "bias-scalar": {"bias": ()},
    "positions": {"query_positions": (-1, HEADS, QUERIES)},
    "positions-L": {"query_positions": (QUERIES,)},
    "slopes-sinks-H": {"alibi_slopes": (HEADS,), "sinks": (HEADS,)},
    "slopes-sinks-BH": {"alibi_slopes": (-1, HEADS), "sinks": (-1, HEADS)},
}


def of_shape(name: str, shape: tuple[int, ...], calls: int, batch: int) -> Tensor:
    """A tensor [calls, *shape], where -1 in `shape` is the batch size."""
    full = (calls, *(batch if n == -1 else n for n in shape))
    if name == "query_positions":
        return torch.zeros(full, dtype=torch.int64)
    return torch.randn(full, dtype=torch.float64)


def shapes(calls: int, batch: int, options: dict[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of out, lse and every gradient under a vmap over `calls` calls."""
    tensors = [of_shape(n, (-1, *s), calls, batch) for n, s in SIZES.items()]
    tensors += [of_shape(n, s, calls, batch) for n, s in options.items()]
    floating = tuple(i for i, t in enumerate(tensors) if t.is_floating_point())

    def call(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(options, inputs[3:], strict=True))
        return flash_attention.attention_with_lse(*inputs[:3], causal=True, **named)

    def loss(*inputs: Tensor) -> Tensor:
        out, lse = call(*inputs)
        return out.sum() + lse.sum()

    results: list[Any] = [*torch.vmap(call)(*tensors)]
    results += torch.vmap(torch.func.grad(loss, argnums=floating))(*tensors)
    leaves = [t.requires_grad_() for i, t in enumerate(tensors) if i in floating]
    results += torch.autograd.grad(torch.vmap(loss)(*tensors).sum(), leaves)
    return [tuple(t.shape) for t in results]


@pytest.mark.parametrize("batch", [0, BATCH])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_vmap_of_size_zero(options: dict[str, tuple[int, ...]], batch: int) -> None:
    found = run_forked(lambda: shapes(0, batch, options))
    assert found == [(0, *shape[1:]) for shape in shapes(1, batch, options)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_vmap_over_empty_batches(options: dict[str, tuple[int, ...]]) -> None:
    """Gradients of inputs without a batch dimension are zeros."""
    named = {
        n: of_shape(n, s, 3, 0).requires_grad_(n != "query_positions") for n, s in options.items()
    }
    query, key, value = (of_shape(n, (-1, *s), 3, 0).requires_grad_() for n, s in SIZES.items())

    def call(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        return flash_attention.attention(q, k, v, **dict(zip(named, others, strict=True)))

    out = torch.vmap(call)(query, key, value, *named.values())
    assert out.shape == (3, 0, HEADS, QUERIES, VALUE_WIDTH)
    leaves = [query, key, value, *(t for t in named.values() if t.requires_grad)]
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "attention": flash_attention.attention,
    "scaled_dot_product_attention": flash_attention.scaled_dot_product_attention,
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
@pytest.mark.parametrize("calls", [(0, 2), (2, 0), (0, 0)], ids=str)
def test_nested_vmap_of_size_zero(operator: Callable[..., Tensor], calls: tuple[int, int]) -> None:
    inputs = [torch.zeros(*calls, BATCH, *s) for s in SIZES.values()]
    shape = run_forked(lambda: torch.vmap(torch.vmap(operator))(*inputs).shape)
    assert shape == (*calls, BATCH, HEADS, QUERIES, VALUE_WIDTH)


def test_vmap_of_size_zero_with_unmapped_inputs() -> None:
    query, key, value = (torch.zeros(BATCH, *s) for s in SIZES.values())

    def call() -> Any:
        mapped = torch.zeros(0, *query.shape)
        return torch.vmap(flash_attention.attention, in_dims=(0, None, None))(
            mapped, key, value
        ).shape

    assert run_forked(call) == (0, BATCH, HEADS, QUERIES, VALUE_WIDTH)


def test_vmap_of_size_zero_with_dropout() -> None:
    query = torch.zeros(0, BATCH, HEADS, QUERIES, WIDTH)

    def call() -> Any:
        return torch.vmap(
            lambda x: flash_attention.attention(x, x, x, dropout=0.5), randomness="different"
        )(query).shape

    assert run_forked(call) == query.shape


def test_error_names_the_sizes_of_one_call() -> None:
    """Not the merged sizes, which the caller does not know."""
    query, key, value = (torch.zeros(7, BATCH, *s) for s in SIZES.values())
    with pytest.raises(ValueError, match=r"one length, got 5 and 4"):
        torch.vmap(flash_attention.attention)(query, key, value[..., :4, :])
    with pytest.raises(ValueError, match=r"one batch size, got 2, 1 and 2"):
        torch.vmap(flash_attention.attention)(query, key[:, :1], value)
    with pytest.raises(ValueError, match=r"all as \[batch, .* got query \[2, 3, 4\]"):
        torch.vmap(flash_attention.attention)(query[:, 0], key, value)
    with pytest.raises(ValueError, match=r"all as \[batch, .* got query \[\]"):
        torch.vmap(flash_attention.attention)(torch.zeros(7), key, value)
