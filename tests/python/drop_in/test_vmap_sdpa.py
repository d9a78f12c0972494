"""torch.vmap over the drop-in runs one call that matches a loop over torch's function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flash_attention import scaled_dot_product_attention
from torch import Tensor

from support.sdpa_calls import operators
from support.tolerances import CLOSE

N, BATCH, HEADS, QUERIES, KEYS, WIDTH = 3, 2, 4, 5, 7, 8
Sdpa = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def no_loop() -> Iterator[None]:
    """Makes torch's fallback for operators without a batching rule, a loop, an error."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def qkv(lead: tuple[int, ...] = (N, BATCH, HEADS), dtype: Any = torch.float64) -> list[Tensor]:
    return [
        random(*lead, QUERIES, WIDTH, dtype=dtype),
        random(*lead, KEYS, WIDTH, dtype=dtype),
        random(*lead, KEYS, WIDTH - 2, dtype=dtype),
    ]


def loop(function: Callable[..., Any], inputs: list[Tensor], in_dims: Any = 0) -> Any:
    """The definition of vmap of `function`: N calls in a loop."""
    dims = (in_dims,) * len(inputs) if isinstance(in_dims, int) else in_dims
    calls = [
        function(*(x if d is None else x.select(d, n) for x, d in zip(inputs, dims, strict=True)))
        for n in range(N)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls)
    return tuple(torch.stack(parts) for parts in zip(*calls, strict=True))


def of_torch(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, **options: Any) -> Tensor:
    """torch's function, which requires masks of two or more dimensions."""
    return F.scaled_dot_product_attention(q, k, v, *map(torch.atleast_2d, mask), **options)


def check(
    function: Callable[[Sdpa], Callable[..., Any]], inputs: list[Tensor], in_dims: Any = 0
) -> None:
    """Checks that vmap of our function equals a loop over torch's."""
    found = torch.vmap(function(scaled_dot_product_attention), in_dims=in_dims)(*inputs)
    expected = loop(function(of_torch), inputs, in_dims)
    # Values and gradients of order 1 to 10.
    torch.testing.assert_close(found, expected, rtol=0, atol=10 * CLOSE[torch.float64])


def gradients(sdpa: Sdpa, **options: Any) -> Callable[..., Any]:
    def loss(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        return sdpa(q, k, v, *mask, **options).sin().sum()

    return lambda *x: torch.func.grad(loss, argnums=tuple(range(len(x))))(*x)


def test_vmap_makes_one_call() -> None:
    ran = operators(lambda: torch.vmap(scaled_dot_product_attention)(*qkv()))
    assert "flash::attention" in ran
    assert ran.isdisjoint({"aten::softmax", "aten::bmm", "aten::select"})


@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (None, 0, 0)], ids=str
)
def test_any_subset_of_query_key_and_value(in_dims: tuple[int | None, ...]) -> None:
    inputs = [x if d == 0 else x[0] for x, d in zip(qkv(), in_dims, strict=True)]
    check(lambda sdpa: sdpa, inputs, in_dims)
    check(gradients, inputs, in_dims)


def test_batch_dimensions_at_any_position() -> None:
    query, key, value = qkv()
    moved = [query.movedim(0, 2), key.movedim(0, 4), value.movedim(0, 1)]
    check(lambda sdpa: sdpa, moved, (2, 4, 1))


@pytest.mark.parametrize("lead", [(N,), (N, HEADS), (N, 2, BATCH, HEADS)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_any_number_of_dimensions(lead: tuple[int, ...], is_causal: bool) -> None:
    """Causal masks are aligned to the top left for different lengths, as in torch."""
    inputs = qkv(lead)
    check(lambda sdpa: lambda q, k, v: sdpa(q, k, v, is_causal=is_causal), inputs)
    check(lambda sdpa: gradients(sdpa, is_causal=is_causal), inputs)


MASKS = [
    (N, BATCH, HEADS, QUERIES, KEYS),
    (N, HEADS, QUERIES, KEYS),
    (N, QUERIES, KEYS),
    (N, KEYS),
    (N,),
    (N, BATCH, 1, 1, KEYS),
    (N, 1, 1, QUERIES, 1),
]


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks_of_every_rank(shape: tuple[int, ...]) -> None:
    inputs = [*qkv(), random(*shape)]
    check(lambda sdpa: sdpa, inputs)
    check(gradients, inputs)
    check(gradients, [*(x[0] for x in inputs[:3]), inputs[3]], (None, None, None, 0))
    check(gradients, [*inputs[:3], inputs[3][0]], (0, 0, 0, None))
    booleans = [*inputs[:3], inputs[3] > -1]
    check(lambda sdpa: lambda *x: sdpa(*x).nan_to_num(0.0), booleans)


def test_mask_of_a_three_dimensional_call() -> None:
    check(gradients, [*qkv((N, HEADS)), random(N, HEADS, QUERIES, KEYS)])


@pytest.mark.parametrize("heads", [(4, 2, 2), (4, 1, 4), (4, 4, 2)], ids=str)
def test_grouped_heads(heads: tuple[int, int, int]) -> None:
    query, key, value = qkv()
    inputs = [x[:, :, :n] for x, n in zip((query, key, value), heads, strict=True)]
    check(lambda sdpa: lambda q, k, v: sdpa(q, k, v, enable_gqa=True), inputs)
    check(lambda sdpa: gradients(sdpa, enable_gqa=True), inputs)


def test_leading_dimensions_that_broadcast() -> None:
    query, key, value = qkv()
    check(gradients, [query, key[:, :1], value])
    check(gradients, [query[:, :, :1], key, value])


def test_scale() -> None:
    check(lambda sdpa: gradients(sdpa, scale=-0.3), qkv())


def test_nested() -> None:
    inputs = [random(N, N, *x.shape[1:]) for x in qkv()]
    found = torch.vmap(torch.vmap(scaled_dot_product_attention))(*inputs)
    expected = loop(lambda *x: loop(F.scaled_dot_product_attention, list(x)), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE[torch.float64])


def test_forward_mode() -> None:
    inputs = qkv()

    def tangent(sdpa: Sdpa) -> Callable[..., Tensor]:
        return lambda q, k, v: torch.func.jvp(lambda x: sdpa(x, k, v), (q,), (q.cos(),))[1]

    found = torch.vmap(tangent(scaled_dot_product_attention))(*inputs)
    # torch's fused path has no forward mode.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = loop(tangent(F.scaled_dot_product_attention), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=10 * CLOSE[torch.float64])


def test_jacobian() -> None:
    query, key, value = (x[0] for x in qkv())

    def jacobian(sdpa: Sdpa) -> Tensor:
        return torch.func.jacrev(lambda q: sdpa(q, key, value).sum((0, 1)))(query)

    expected = torch.autograd.functional.jacobian(
        lambda q: F.scaled_dot_product_attention(q, key, value).sum((0, 1)), query
    )
    torch.testing.assert_close(
        jacobian(scaled_dot_product_attention), expected, rtol=0, atol=10 * CLOSE[torch.float64]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_dtypes(dtype: torch.dtype) -> None:
    """Bitwise equal to a loop over our function."""
    inputs = [*qkv(dtype=dtype), random(N, QUERIES, KEYS, dtype=dtype)]
    for query in (inputs[0], inputs[0][:, :1]):  # the second broadcasts
        call = gradients(scaled_dot_product_attention)
        found = torch.vmap(call)(query, *inputs[1:])
        expected = loop(call, [query, *inputs[1:]])
        for name, one, other in zip("qkvm", found, expected, strict=True):
            assert one.dtype == dtype and torch.equal(one, other), name


def test_dropout_requires_randomness_different() -> None:
    def call(query: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, query, query, dropout_p=0.5)

    query = qkv()[0][:1].expand(N, -1, -1, -1, -1)
    found = torch.vmap(call, randomness="different")(query)
    assert not torch.equal(found[0], found[1])
    with pytest.raises(ValueError, match=r"randomness='different'.*got randomness='error'"):
        torch.vmap(call)(query)


def test_invalid_arguments_are_refused() -> None:
    query, key, value = qkv()
    with pytest.raises(ValueError, match="expected attn_mask or is_causal, got both"):
        torch.vmap(lambda q, m: scaled_dot_product_attention(q, key, value, m, is_causal=True))(
            query, random(N, QUERIES, KEYS)
        )
    with pytest.raises(ValueError, match=r"attn_mask to broadcast to \[2, 4, 5, 7\], got \[5, 6\]"):
        torch.vmap(scaled_dot_product_attention)(query, key, value, random(N, QUERIES, 6))
