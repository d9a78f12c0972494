"""No kernel reads out of bounds: tensors are placed right after an unreadable page, then right
before one, and the results are bitwise equal.

csrc_test does the same for outputs, gradients and scratch, at every length and width.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.problems import DTYPES, DTYPES_16BIT, Problem, Spec, dtype_name, make_problem

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
FAILED = ctypes.c_void_p(-1).value

every_dtype = pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
Place = Callable[[Tensor], Tensor]


class GuardedMemory:
    """Copies tensors into pages between two guard pages."""

    def __init__(self) -> None:
        self.mappings: list[tuple[int, int]] = []

    def copy(self, tensor: Tensor, at_end: bool) -> Tensor:
        """A contiguous copy of `tensor` that ends at a guard page or begins after one."""
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // mmap.PAGESIZE)
        total = (pages + 2) * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = LIBC.mmap(None, total, 0, flags, -1, 0)
        assert address != FAILED, ctypes.get_errno()
        self.mappings.append((address, total))
        first = address + mmap.PAGESIZE
        readable = mmap.PROT_READ | mmap.PROT_WRITE
        if size > 0:
            assert LIBC.mprotect(first, pages * mmap.PAGESIZE, readable) == 0, ctypes.get_errno()
        begin = first + pages * mmap.PAGESIZE - size if at_end else first
        buffer = (ctypes.c_char * size).from_address(begin)
        if size == 0:
            return tensor.clone()
        return torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)

    def release(self) -> None:
        for address, total in self.mappings:
            assert LIBC.munmap(address, total) == 0
        self.mappings.clear()


@pytest.fixture
def memory() -> Iterator[GuardedMemory]:
    guarded = GuardedMemory()
    yield guarded
    guarded.release()


def assert_no_out_of_bounds_reads(
    call: Callable[[Place], list[Tensor]], memory: GuardedMemory
) -> None:
    """`call` passes each of its input tensors through the given function."""
    expected = call(lambda t: t)
    for at_end in (False, True):
        actual = call(lambda t, at_end=at_end: memory.copy(t, at_end))
        copies = [t.clone() for t in actual]  # results may be views of the inputs
        memory.release()
        for one, other in zip(copies, expected, strict=True):
            assert torch.equal(one, other)


def forward_and_backward(problem: Problem) -> Callable[[Place], list[Tensor]]:
    """out and lse, their gradients, and out of a call without gradients."""

    def call(place: Place) -> list[Tensor]:
        options = dict(problem.options)
        if "query_positions" in options:
            options["query_positions"] = place(options["query_positions"])
        leaves = {n: place(t.detach()) for n, t in problem.inputs.items()}
        leaves = {n: t.requires_grad_(n in problem.differentiable) for n, t in leaves.items()}
        torch.manual_seed(0)
        results = flash_attention.attention_with_lse(**leaves, **options)
        grads = torch.autograd.grad(
            results,
            [leaves[n] for n in problem.differentiable],
            (place(problem.grad_out), place(problem.grad_lse)),
        )
        torch.manual_seed(0)
        with torch.no_grad():
            out = flash_attention.attention(**leaves, **options)
        return [*(t.detach() for t in results), *grads, out]

    return call


def check(spec: Spec, dtype: torch.dtype, memory: GuardedMemory) -> None:
    assert_no_out_of_bounds_reads(forward_and_backward(make_problem(spec, dtype)), memory)


@every_dtype
def test_every_width(dtype: torch.dtype, memory: GuardedMemory) -> None:
    for width in (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 33, 63, 65):
        for value_dim in {width, 1, 6, 13}:
            spec = Spec(1, 1, queries=7, keys=11, head_dim=width, value_dim=value_dim)
            check(spec, dtype, memory)


@every_dtype
def test_every_length(dtype: torch.dtype, memory: GuardedMemory) -> None:
    for queries in (1, 5, 8, 23, 25, 97):
        for keys in (1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 24, 25, 31, 63, 65, 129):
            spec = Spec(1, 1, queries=queries, keys=keys, head_dim=5, value_dim=3)
            check(spec, dtype, memory)


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "positions": {"causal": True, "positions": "L"},
    "bias-LS": {"bias": "LS"},
    "bias-S": {"bias": "S"},
    "bias-L1": {"bias": "L1"},
    "bias-BHLS": {"bias": "BHLS"},
    "mask-LS": {"mask": "LS"},
    "mask-B11S": {"mask": "B11S"},
    "dropout": {"dropout": 0.3},
    "block-5": {"block_size": 5},
    "no-simd": {"use_simd": False},
    "window": {"window": (5, 2)},
    "window-left": {"window": (3, -1)},
    "window-bias": {"window": (5, 2), "bias": "LS"},
    "window-mask": {"window": (5, 2), "mask": "LS"},
    "window-positions": {"window": (5, 2), "positions": "L"},
    "alibi-H": {"alibi": "H"},
    "alibi-BH": {"alibi": "BH"},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": "H"},
    "one-kv-head": {"key_heads": 1, "value_heads": 1},
}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
@every_dtype
def test_every_option(dtype: torch.dtype, option: dict[str, Any], memory: GuardedMemory) -> None:
    for queries, keys in ((7, 9), (33, 65), (100, 131)):
        spec = Spec(1, 2, queries=queries, keys=keys, head_dim=9, value_dim=7, **option)
        check(spec, dtype, memory)


@pytest.mark.parametrize("option", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
@every_dtype
def test_decoding(dtype: torch.dtype, option: dict[str, Any], memory: GuardedMemory) -> None:
    """Keys are split over threads."""
    for queries, keys in ((1, 2048), (8, 2049), (3, 3073)):
        spec = Spec(1, 2, queries=queries, keys=keys, head_dim=9, value_dim=17, **option)
        check(spec, dtype, memory)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@every_dtype
def test_packed_sequences(dtype: torch.dtype, memory: GuardedMemory) -> None:
    queries, keys = torch.tensor([0, 5, 5, 6, 39]), torch.tensor([0, 9, 12, 12, 45])
    inputs = [random(39, 4, 9, dtype=dtype), random(45, 2, 9, dtype=dtype)]
    inputs += [random(45, 1, 7, dtype=dtype), random(4, 4, dtype=dtype).abs()]
    inputs += [random(4, dtype=dtype)]
    grad_out = random(39, 4, 7, dtype=dtype)

    def call(place: Place) -> list[Tensor]:
        leaves = [place(t).requires_grad_() for t in inputs]
        out = flash_attention.varlen_attention(
            *leaves[:3], place(queries), place(keys), causal=True, alibi_slopes=leaves[3],
            sinks=leaves[4],
        )  # fmt: skip
        return [out.detach(), *torch.autograd.grad(out, leaves, place(grad_out))]

    assert_no_out_of_bounds_reads(call, memory)


@every_dtype
def test_key_value_cache(dtype: torch.dtype, memory: GuardedMemory) -> None:
    def call(place: Place) -> list[Tensor]:
        cache = flash_attention.KeyValueCache(2, 2, 2100, 9, value_dim=7, dtype=dtype)
        found = []
        for positions, counts in ((2060, [2060, 70]), (1, [1, 1]), (3, [0, 3])):
            parts = random(2, 2, positions, 9, dtype=dtype), random(2, 2, positions, 7, dtype=dtype)
            given = place(torch.tensor(counts))
            cache.append(place(parts[0]), place(parts[1]), given)
            if positions < 8:
                query = random(2, 4, positions, 9, dtype=dtype)
                out = cache.attention(place(query), given, sinks=place(random(4, dtype=dtype)))
                # Rows past the counts are undefined.
                found += [out[b, :, :n] for b, n in enumerate(counts)]
        return found

    assert_no_out_of_bounds_reads(call, memory)


@every_dtype
def test_drop_in(dtype: torch.dtype, memory: GuardedMemory) -> None:
    query, key = random(2, 4, 7, 9, dtype=dtype), random(2, 2, 11, 9, dtype=dtype)
    value, mask = random(2, 2, 11, 7, dtype=dtype), random(4, 1, 11, dtype=dtype)

    def call(place: Place) -> list[Tensor]:
        leaves = [place(t).requires_grad_() for t in (query, key, value, mask)]
        out = flash_attention.scaled_dot_product_attention(*leaves, enable_gqa=True)
        grad = place(random(2, 4, 7, 7, dtype=dtype))
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    assert_no_out_of_bounds_reads(call, memory)
