"""torch.vmap over the operator runs one call that gives the results of N calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.sdpa_calls import operators
from support.tolerances import CLOSE

N, BATCH, HEADS, QUERIES, KEYS = 5, 2, 2, 6, 9
Attention = Callable[..., Tensor]

pytestmark = pytest.mark.filterwarnings(
    # torch warns if it calls an operator N times in a loop.
    "error:There is a performance drop"
)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def qkv(mapped: bool) -> list[Tensor]:
    lead = (N, BATCH, HEADS) if mapped else (BATCH, HEADS)
    return [random(*lead, QUERIES, 3), random(*lead, KEYS, 3), random(*lead, KEYS, 4)]


def assert_close(found: Any, expected: Any) -> None:
    # Values and gradients of order 1 to 10, summed in another order.
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=10 * CLOSE[torch.float64])


def check_against_standard(
    function: Callable[[Attention], Callable[..., Any]], *inputs: Tensor, in_dims: Any = 0
) -> None:
    """Checks that vmap of `function(op)` gives the same for the operator and standard attention."""
    found, expected = (
        torch.vmap(function(op), in_dims=in_dims)(*inputs)
        for op in (flash_attention.attention, flash_attention.standard_attention)
    )
    assert_close(found, expected)


@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (0, 0, None)]
)
def test_any_subset_of_query_key_and_value(in_dims: tuple[int | None, ...]) -> None:
    mapped, plain = qkv(True), qkv(False)
    inputs = [p if d is None else m for m, p, d in zip(mapped, plain, in_dims, strict=True)]
    check_against_standard(lambda op: op, *inputs, in_dims=in_dims)


def test_batch_dimensions_at_any_position() -> None:
    query, key, value = qkv(True)
    check_against_standard(
        lambda op: op,
        query.movedim(0, 2),
        key.movedim(0, 4),
        value.movedim(0, 1),
        in_dims=(2, 4, 1),
    )


def test_vmap_makes_one_call() -> None:
    ran = operators(lambda: torch.vmap(flash_attention.attention)(*qkv(True)))
    assert "aten::softmax" not in ran and "aten::bmm" not in ran


BIASES = [
    (N, BATCH, HEADS, QUERIES, KEYS),
    (N, HEADS, QUERIES, KEYS),
    (N, QUERIES, KEYS),
    (N, KEYS),
    (N, BATCH, 1, QUERIES, KEYS),
    (N, 1, HEADS, 1, KEYS),
    (N, 1, 1, QUERIES, 1),
]


@pytest.mark.parametrize("shape", BIASES, ids=str)
def test_bias_and_its_gradient(shape: tuple[int, ...]) -> None:
    query, key, value = qkv(False)

    def loss(op: Attention) -> Callable[..., Any]:
        return torch.func.grad(
            lambda q, b: op(q, key, value, bias=b).sin().sum(), argnums=(0, 1), has_aux=False
        )

    check_against_standard(
        lambda op: lambda q, b: op(q, key, value, bias=b), qkv(True)[0], random(*shape)
    )
    check_against_standard(loss, qkv(True)[0], random(*shape))
    check_against_standard(loss, query, random(*shape), in_dims=(None, 0))


def test_mask_and_positions() -> None:
    query, key, value = qkv(True)
    mask = random(N, QUERIES, KEYS) > -0.5
    positions = torch.randint(-1, KEYS, (N, BATCH, HEADS, QUERIES))

    def with_both(op: Attention) -> Callable[..., Tensor]:
        return lambda q, k, v, m, p: op(q, k, v, bias=m, query_positions=p, causal=True)

    check_against_standard(with_both, query, key, value, mask, positions)


@pytest.mark.parametrize("slopes", [(HEADS,), (N, HEADS), (N, BATCH, HEADS)], ids=str)
@pytest.mark.parametrize("sinks", [(HEADS,), (N, HEADS), (N, BATCH, HEADS)], ids=str)
def test_gradients_of_slopes_and_sinks(slopes: tuple[int, ...], sinks: tuple[int, ...]) -> None:
    def loss(op: Attention) -> Callable[..., Any]:
        def of(q: Tensor, k: Tensor, v: Tensor, a: Tensor, s: Tensor) -> Tensor:
            options = {"causal": True, "window": (4, -1), "softcap": 2.0}
            return op(q, k, v, alibi_slopes=a, sinks=s, **options).sin().sum()

        return torch.func.grad(of, argnums=(0, 1, 2, 3, 4))

    dims = tuple(0 if shape[0] == N else None for shape in (slopes, sinks))
    check_against_standard(
        loss, *qkv(True), random(*slopes).abs(), random(*sinks), in_dims=(0, 0, 0, *dims)
    )


def test_three_dimensional_call() -> None:
    query, key, value = (x[:, 0] for x in qkv(True))
    check_against_standard(lambda op: op, query, key, value)


@pytest.mark.parametrize("shape", [(N, BATCH, 1, QUERIES, KEYS), (N, 1, 1, QUERIES, KEYS)], ids=str)
def test_three_dimensional_call_with_a_four_dimensional_bias(shape: tuple[int, ...]) -> None:
    """A bias [B, L, S] of a 3-D call may be given as [B, 1, L, S]."""
    query, key, value = (x[:, :, 0] for x in qkv(True))

    def loss(op: Attention) -> Callable[..., Any]:
        return torch.func.grad(
            lambda q, k, v, b: op(q, k, v, bias=b).sin().sum(), argnums=(0, 1, 2, 3)
        )

    check_against_standard(loss, query, key, value, random(*shape))


def test_nested() -> None:
    query, key, value = (x.unsqueeze(1).repeat(1, 2, *(1,) * (x.dim() - 1)) for x in qkv(True))
    check_against_standard(lambda op: torch.vmap(op), query, key, value)


def test_jacobian() -> None:
    _, key, value = qkv(False)
    check_against_standard(
        lambda op: torch.func.jacrev(lambda q: op(q, key, value).sum((0, 1))),
        qkv(True)[0],
    )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_jacobian_of_every_input(argument: int, batch: int) -> None:
    """jacrev maps only the output gradient; inputs and results are shared."""
    inputs = [x[:batch] for x in qkv(False)]
    found, expected = (
        torch.func.jacrev(op, argnums=argument)(*inputs)
        for op in (flash_attention.attention, flash_attention.standard_attention)
    )
    assert_close(found, expected)


def test_lse() -> None:
    query, key, value = qkv(True)
    out, lse = torch.vmap(flash_attention.attention_with_lse)(query, key, value)
    for i in range(N):
        one = flash_attention.attention_with_lse(query[i], key[i], value[i])
        assert_close((out[i], lse[i]), one)


def dropped(query: Tensor) -> Tensor:
    return flash_attention.attention(query, query, query, dropout=0.5)


DROPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "out": dropped,
    "out-beside-lse": lambda q: flash_attention.attention_with_lse(q, q, q, dropout=0.5)[0],
    "gradient": torch.func.grad(lambda q: dropped(q).sum()),
}


@pytest.mark.parametrize("call", DROPPED.values(), ids=DROPPED.keys())
def test_dropout_requires_randomness_different(call: Callable[[Tensor], Tensor]) -> None:
    query = qkv(False)[0].expand(N, BATCH, HEADS, QUERIES, 3)
    found = torch.vmap(call, randomness="different")(query)
    assert not torch.equal(found[0], found[1])
    with pytest.raises(ValueError, match=r"randomness='different'.*got randomness='error'"):
        torch.vmap(call)(query)
    with pytest.raises(NotImplementedError, match="'same', which is not implemented"):
        torch.vmap(call, randomness="same")(query)
