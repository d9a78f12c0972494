"""torch's CausalBias, a mask whose elements are not initialized, as `attn_mask` and as `bias`."""

from __future__ import annotations

from collections.abc import Callable

import flash_attention
import pytest
import torch
import torch.nn.functional as F
from flash_attention import attention, scaled_dot_product_attention
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

pytestmark = pytest.mark.once

VARIANTS = [causal_lower_right, causal_upper_left]


def qkv(queries: int, keys: int, lead: tuple[int, ...] = (2, 4)) -> list[Tensor]:
    return [
        torch.randn(*lead, n, 8, dtype=torch.float64, requires_grad=True)
        for n in (queries, keys, keys)
    ]


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 9), (1, 6)])
@pytest.mark.parametrize("create", VARIANTS)
def test_the_drop_in_takes_it_as_torch_does(
    create: Callable[..., Tensor], queries: int, keys: int, lead: tuple[int, ...]
) -> None:
    inputs, mask = qkv(queries, keys, lead), create(queries, keys)
    expected, actual = (
        function(*inputs, attn_mask=mask, scale=0.3)
        for function in (F.scaled_dot_product_attention, scaled_dot_product_attention)
    )
    assert type(actual) is Tensor
    torch.testing.assert_close(actual, expected)
    gradients = (torch.autograd.grad(out.square().sum(), inputs) for out in (actual, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("create", VARIANTS)
def test_one_of_other_lengths_or_beside_is_causal_is_refused(create: Callable[..., Tensor]) -> None:
    inputs = qkv(5, 9)
    with pytest.raises(
        ValueError, match="CausalBias for 5 queries and 9 keys, got one for 5 and 8"
    ):
        scaled_dot_product_attention(*inputs, create(5, 8))
    with pytest.raises(ValueError, match="attn_mask or is_causal, got a CausalBias and"):
        scaled_dot_product_attention(*inputs, create(5, 9), is_causal=True)


@pytest.mark.parametrize("create", VARIANTS)
@pytest.mark.parametrize("name", ["attention", "attention_with_lse", "standard_attention"])
def test_it_is_no_bias_of_the_operators(name: str, create: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match="bias with elements, got a CausalBias.*causal=True"):
        getattr(flash_attention, name)(*qkv(5, 9), bias=create(5, 9))


def test_the_options_that_the_error_names_mean_the_same() -> None:
    inputs = qkv(5, 9)
    lower, upper = (
        F.scaled_dot_product_attention(*inputs, attn_mask=create(5, 9)) for create in VARIANTS
    )
    torch.testing.assert_close(attention(*inputs, causal=True), lower)
    positions = torch.arange(5)
    torch.testing.assert_close(attention(*inputs, causal=True, query_positions=positions), upper)
