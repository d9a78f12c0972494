"""Sizes near 2^62, tensors without elements, and extreme numbers: a result or an error.

These tensors need no memory: one dimension is 0 or expanded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.forked import run_forked
from support.tolerances import CLOSE


def attention(*shape: int) -> Tensor:
    x = torch.empty(shape)
    return flash_attention.attention(x, x, x)


def gradient(*shape: int, **options: Any) -> torch.ErrorSize:
    x = torch.empty(shape, requires_grad=True)
    out = flash_attention.attention(x, x, x, **options)
    return torch.autograd.grad(out.sum(), x)[0].shape


@pytest.mark.parametrize(
    "shape", [(2**61, 1, 1, 0), (1, 2**62, 1, 0), (2**31, 2**31, 2, 0), (1, 2**60, 0)], ids=str
)
def test_too_many_rows_are_refused(shape: tuple[int, ...]) -> None:
    """Their size in bytes is 2^64, which overflows to 0 in 64 bits."""
    with pytest.raises(ValueError, match=r"^flash::attention: expected query of at most \d+ rows"):
        run_forked(lambda: attention(*shape))


def test_out_of_memory_for_row_statistics() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run_forked(lambda: attention(2**40, 1, 1, 0))


@pytest.mark.parametrize(
    "shape",
    [(0, 1, 2**55, 8), (1, 0, 2**55, 8), (2**50, 1, 0, 8), (0, 2**55, 0), (1, 1, 0, 2**58)],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"causal": True, "window": (3, 0)}], ids=str)
def test_empty_query_with_huge_other_sizes(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Sizes of tensors without elements do not determine the amount of work."""
    assert run_forked(lambda: gradient(*shape, **options)) == shape


def test_empty_query_gives_zero_gradients() -> None:
    query = torch.empty(2, 4, 0, 8, requires_grad=True)
    key = torch.randn(2, 2, 9, 8, requires_grad=True)
    bias = torch.zeros(9, requires_grad=True)
    sinks = torch.zeros(4, requires_grad=True)
    slopes = torch.zeros(2, 4, requires_grad=True)
    out = flash_attention.attention(
        query, key, key, bias=bias, sinks=sinks, alibi_slopes=slopes, causal=True
    )
    leaves = (query, key, bias, sinks, slopes)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("heads", [0, 2**55])
def test_packed_sequences_with_empty_query(heads: int) -> None:
    def call() -> list[torch.ErrorSize]:
        x = torch.empty(0, heads, 8, requires_grad=True)
        per_head = [] if heads else [torch.zeros(3, 0, requires_grad=True) for _ in range(2)]
        named = dict(zip(("alibi_slopes", "sinks"), per_head, strict=False))
        starts = torch.zeros(4, dtype=torch.int64)
        out = flash_attention.varlen_attention(x, x, x, starts, starts, **named)
        return [g.shape for g in torch.autograd.grad(out.sum(), [x, *per_head])]

    assert run_forked(call) == [(0, heads, 8), *([] if heads else [(3, 0)] * 2)]


def test_packed_keys_with_empty_query_have_zero_gradients() -> None:
    query = torch.empty(0, 2, 8, requires_grad=True)
    key = torch.randn(5, 2, 8, requires_grad=True)
    starts, ends = torch.tensor([0, 0, 0]), torch.tensor([0, 2, 5])
    out = flash_attention.varlen_attention(query, key, key, starts, ends)
    (grad,) = torch.autograd.grad(out.sum(), key)
    assert torch.equal(grad, torch.zeros_like(key))


SIZES = ("batch", "heads", "queries", "keys", "head_dim", "value_dim")


@pytest.mark.parametrize("large", SIZES)
@pytest.mark.parametrize("size", [2**47, 2**62, 2**63 - 1])
def test_attention_memory_refuses_unaddressable_sizes(large: str, size: int) -> None:
    sizes = dict.fromkeys(SIZES, 1) | {large: size}
    message = r"^flash::attention_memory: expected tensors of at most 2\^47 bytes, got .*Float"
    with pytest.raises(ValueError, match=message):
        flash_attention.attention_memory(*sizes.values())
    with pytest.raises(ValueError, match=message):
        flash_attention.attention_memory(*dict.fromkeys(SIZES, size).values())


@pytest.mark.parametrize("large", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_attention_memory_grows_with_size_without_overflow(large: str, dtype: torch.dtype) -> None:
    """No overflow up to the limit."""
    found = []
    for power in (20, 30, 40, 44):
        sizes = dict.fromkeys(SIZES, 1) | {large: 2**power}
        found.append(flash_attention.attention_memory(*sizes.values(), dtype, 2**63 - 1))
    assert all(x > 0 for usage in found for x in usage)
    for smaller, larger in zip(found, found[1:], strict=False):
        assert larger.forward >= smaller.forward and larger.backward >= smaller.backward


@pytest.mark.parametrize(
    "shape", [(2**40, 2**20, 1, 0), (2**20, 2**40, 3, 0), (0, 1, 2**50, 7)], ids=str
)
def test_dropout_mask_without_elements(shape: tuple[int, ...]) -> None:
    assert run_forked(lambda: flash_attention.dropout_mask(*shape, 0.5).shape) == shape


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_mask_larger_than_memory(dropout: float) -> None:
    with pytest.raises(RuntimeError, match=r"overflow|can't allocate memory"):
        run_forked(lambda: flash_attention.dropout_mask(2**32, 2**32, 1, 1, dropout))


def shrunk(strided: bool) -> Tensor:
    """[2, 4, 6, 8] with freed storage, as sharded training does to parameters."""
    x = torch.randn(2, 4, 8, 6).mT if strided else torch.randn(2, 4, 6, 8)
    x.untyped_storage().resize_(0)
    return x


def attention_of_shrunk(name: str, strided: bool) -> Tensor:
    arguments = {n: torch.randn(2, 4, 6, 8) for n in ("query", "key", "value")}
    arguments[name] = shrunk(strided)
    return flash_attention.attention(**arguments)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_tensor_with_freed_storage_is_refused(name: str, strided: bool) -> None:
    with pytest.raises(ValueError, match=r"expected 1536 bytes of storage .*\[2, 4, 6, 8\], got 0"):
        run_forked(lambda: attention_of_shrunk(name, strided))


def freed_between_the_passes() -> None:
    x = torch.randn(2, 4, 6, 8, requires_grad=True)
    out = flash_attention.attention(x, x, x)
    x.untyped_storage().resize_(0)
    out.sum().backward()


def test_storage_freed_between_forward_and_backward() -> None:
    with pytest.raises(ValueError, match="bytes of storage"):
        run_forked(freed_between_the_passes)


def results(operator: Callable[..., Tensor], **options: Any) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, 2, n, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (5, 70, 70)
    ]
    out = operator(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)]


def assert_as_defined(**options: Any) -> None:
    """Compares with standard_attention; NaN equals NaN."""
    found = results(flash_attention.attention, **options)
    expected = results(flash_attention.standard_attention, **options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=CLOSE[torch.float64], equal_nan=True)


LIMITS: dict[str, dict[str, Any]] = {
    "scale-infinite": {"scale": math.inf},
    "scale-minus-infinite": {"scale": -math.inf},
    "scale-nan": {"scale": math.nan},
    "scale-largest": {"scale": 1.7e308},
    "scale-denormal": {"scale": 5e-324},
    "scale-zero": {"scale": 0.0},
    "window-largest": {"window": (2**63 - 1, 2**63 - 1)},
    "window-largest-causal": {"window": (2**63 - 1, 0), "causal": True},
    "window-none-left": {"window": (0, 2**63 - 1)},
    "softcap-largest": {"softcap": 1.7e308},
    "softcap-denormal": {"softcap": 5e-324},
}


@pytest.mark.parametrize("options", LIMITS.values(), ids=LIMITS.keys())
def test_extreme_scalar_options(options: dict[str, Any]) -> None:
    assert_as_defined(**options)


@pytest.mark.parametrize("position", [2**63 - 1, 2**62, -1, -(2**62), -(2**63)])
@pytest.mark.parametrize("options", [{"causal": True}, {"window": (2, 3)}], ids=str)
def test_extreme_positions(position: int, options: dict[str, Any]) -> None:
    positions = torch.tensor([position, 0, 3, 69, 2**63 - 1])
    assert_as_defined(query_positions=positions, **options)


@pytest.mark.parametrize("use_simd", [True, False])
@pytest.mark.parametrize("block_size", [1, 2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize("keys", [1, 70, 2048])
def test_extreme_block_sizes(keys: int, block_size: int, use_simd: bool) -> None:
    query, key = torch.randn(1, 2, 3, 8).double(), torch.randn(1, 2, keys, 8).double()
    query.requires_grad_(), key.requires_grad_()
    results = []
    for options in ({"block_size": block_size, "use_simd": use_simd}, {}):
        out = flash_attention.attention(query, key, key, **options)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (query, key))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=CLOSE[torch.float64])
