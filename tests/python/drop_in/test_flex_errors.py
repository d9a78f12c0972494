"""What flex_attention refuses, and what its messages say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_attention import flex_attention
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

pytestmark = pytest.mark.once

LENGTH = 20


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


TENSORS = {"query": zeros(2, 4, LENGTH, 8), "key": zeros(2, 4, 30, 8), "value": zeros(2, 4, 30, 8)}
mask_of = functools.partial(create_block_mask, device="cpu", BLOCK_SIZE=8)


def causal(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return q >= kv


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"query": None}, TypeError, "query to be a tensor, got None"),
        ({"key": zeros(4, 30, 8)}, ValueError, r"key \[batch, heads, length, width\], got \[4, 30"),
        ({"key": zeros(2, 4, 30, 7)}, ValueError, "width 8 of query, got"),
        ({"value": zeros(2, 4, 29, 8)}, ValueError, r"value .*\[2, 4, 30\] of key, got \[2, 4, 29"),
        ({"value": zeros(2, 2, 30, 8)}, ValueError, r"value .*\[2, 4, 30\] of key"),
        ({"query": zeros(3, 4, LENGTH, 8)}, ValueError, "key of 1 or 3 batches, as query, got 2"),
        ({"query": zeros(2, 8, LENGTH, 8)}, ValueError, "key of 8 heads.*got 4; enable_gqa=True"),
        (
            {"query": zeros(2, 6, LENGTH, 8), "enable_gqa": True},
            ValueError,
            "key of 6 heads.*divisor, got 4$",
        ),
        ({"query": TENSORS["query"].long()}, TypeError, "query of float32.*got torch.int64"),
        ({"key": TENSORS["key"].double()}, TypeError, "key of torch.float32.*got torch.float64"),
        ({"value": TENSORS["value"].to("meta")}, NotImplementedError, "value on the CPU, got meta"),
        ({"query": TENSORS["query"].to_sparse()}, NotImplementedError, "dense query"),
        ({"block_mask": causal}, TypeError, "block_mask from .*create_block_mask, got <function"),
        ({"score_mod": 3}, TypeError, "score_mod to be a function, got 3"),
        ({"scale": "one"}, ValueError, "could not convert"),
    ],
)
def test_invalid_arguments_are_refused(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    flex_attention(**TENSORS)
    with pytest.raises(error, match=text):
        flex_attention(**TENSORS | changes)


def broken(**changes: Tensor) -> BlockMask:
    mask = mask_of(causal, None, None, LENGTH, 30)
    for name, tensor in changes.items():
        setattr(mask, name, tensor)
    return mask


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (mask_of(causal, None, None, 30, LENGTH), "20 queries and 30 keys, got one for 30 and 20"),
        (mask_of(causal, None, None, LENGTH, 31), "30 keys, got one for 20 and 31"),
        (mask_of(causal, 3, None, LENGTH, 30), r"1 or 2 batches.*got kv_num_blocks \[3, 1, 3\]"),
        (mask_of(causal, None, 2, LENGTH, 30), r"1 or 4 heads, got kv_num_blocks \[1, 2, 3\]"),
        (mask_of(causal, None, None, LENGTH, 30)[:, :, :2], "3 rows of blocks"),
        (broken(kv_num_blocks=torch.full((1, 1, 3), 5)), "blocks 0 to 3, got others"),
        (broken(kv_num_blocks=torch.full((1, 1, 3), -1)), "blocks 0 to 3, got others"),
        (broken(kv_indices=torch.full((1, 1, 3, 4), 4)), "blocks 0 to 3, got others"),
        (broken(kv_indices=torch.full((1, 1, 3, 4), -1)), "blocks 0 to 3, got others"),
        (
            broken(
                kv_num_blocks=torch.full((1, 1, 3), 2),
                kv_indices=torch.zeros(1, 1, 3, 4, dtype=torch.int32),
            ),
            "list a block once",
        ),
        (broken(kv_num_blocks=torch.zeros(1, 1, 3, device="meta")), "on the cpu.*got meta"),
        (mask_of(causal, None, None, LENGTH, 30)[0], "sliced BlockMask"),
    ],
)
def test_invalid_masks_are_refused(mask: BlockMask, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        flex_attention(**TENSORS, block_mask=mask)


TABLE = zeros(LENGTH)


@pytest.mark.parametrize(
    ("score_mod", "error", "text"),
    [
        (lambda s, b, h, q: s, ValueError, r"score_mod\(score, b, h, q_idx, kv_idx\).*TypeError"),
        (lambda *a: 1 / 0, ValueError, "ZeroDivisionError: division by zero"),
        (lambda s, *a: None, TypeError, "score_mod to return a tensor, got None"),
        (lambda s, *a: s.expand(3), ValueError, r"scalar for scalars, got a tensor of shape \[3\]"),
        (lambda s, *a: s > 0, TypeError, "floating tensor, got torch.bool"),
        (lambda s, b, h, q, kv: q, TypeError, "floating tensor, got torch.int64"),
        (lambda s, b, h, q, kv: s if q > kv else -s, ValueError, "reads an element.*torch.where"),
        (lambda s, b, h, q, kv: s * q.item(), ValueError, "reads an element"),
        (lambda s, b, h, q, kv: s * q.tolist(), ValueError, "reads an element"),
        (lambda s, b, h, q, kv: s + TABLE[q, None], ValueError, "reads an element.*full slices"),
        (lambda s, *a: s + torch.rand(()), ValueError, "without random numbers, got aten.rand"),
        (lambda s, *a: s.add_(1), ValueError, "without in-place operations, got aten.add_"),
        (lambda s, *a: TABLE.zero_()[0] + s, ValueError, "without in-place.*got aten.zero_"),
        (lambda s, b, h, q, kv: s * TABLE[kv].cos(), ValueError, "vectorises.*IndexError"),
        (lambda s, b, h, q, kv: s + TABLE[kv], ValueError, "IndexError: index 20 is out of bounds"),
        (lambda s, b, h, q, kv: s + zeros(20, 20)[q, kv], ValueError, "least 30 elements.*kv, got"),
        (lambda s, *a: s + zeros(1).to("meta")[0], ValueError, "score_mod"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_score_mods_that_cannot_be_evaluated_are_refused(
    score_mod: Callable[..., Any], error: type[Exception], text: str, grad: bool
) -> None:
    query = TENSORS["query"].clone().requires_grad_(grad)
    with pytest.raises(error, match=text):
        flex_attention(**TENSORS | {"query": query}, score_mod=score_mod)
    assert not TABLE.any() and TABLE.shape == (LENGTH,)


class Rounded(torch.autograd.Function):
    """Rounds, with the gradient of what is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


SLOPE = torch.tensor(0.7, requires_grad=True)


def without_gradient(score: Tensor, *indices: Tensor) -> Tensor:
    with torch.no_grad():
        return score.cos()


def with_a_named_bound(score: Tensor, *indices: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.clamp(score.detach(), min=SLOPE)


@pytest.mark.parametrize(
    ("score_mod", "of_score"),
    [
        (with_a_named_bound, False),
        (lambda s, *a: Rounded.apply(s), True),
        (lambda s, *a: s + Rounded.apply(s * 2), True),
        (without_gradient, True),
        (lambda s, *a: s * Rounded.apply(SLOPE), False),
        (lambda s, *a: s * Rounded.apply(SLOPE.exp()), False),
    ],
)
def test_gradients_that_the_operations_do_not_have_are_refused(
    score_mod: Callable[..., Any], of_score: bool
) -> None:
    tensors = TENSORS | {"query": TENSORS["query"].clone().requires_grad_(of_score)}
    text = r"without torch.autograd.Function and torch.no_grad.*got aten\.\w+"
    with pytest.raises(ValueError, match=text):
        flex_attention(**tensors, score_mod=score_mod)
    with torch.no_grad():
        expected = flex_attention(**tensors, score_mod=score_mod)
    if of_score:  # nothing has a gradient here
        assert torch.equal(flex_attention(**TENSORS, score_mod=score_mod), expected)


@pytest.mark.parametrize(
    ("mask_mod", "error", "text"),
    [
        (lambda b, h, q, kv: q - kv, TypeError, "mask_mod to return a bool tensor, got torch.int"),
        (lambda b, h, q, kv: bool(q > kv), ValueError, "mask_mod to compute.*reads an element"),
        (lambda b, h, q: q > 1, ValueError, r"mask_mod\(b, h, q_idx, kv_idx\) of.*TypeError"),
    ],
)
def test_mask_mods_that_cannot_be_evaluated_are_refused(
    mask_mod: Callable[..., Any], error: type[Exception], text: str
) -> None:
    mask = mask_of(causal, None, None, LENGTH, 30)
    mask.mask_mod = mask_mod
    with pytest.raises(error, match=text):
        flex_attention(**TENSORS, block_mask=mask)
