"""No byte past the end of a tensor is read: each ends where an unreadable page begins."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

import flash_attention
import pytest
import torch
from problems import DTYPES, NARROW, Problem, Spec, dtype_name, make_problem
from tolerances import CLOSE

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
FAILED = ctypes.c_void_p(-1).value


class GuardedMemory:
    """Copies tensors to the very end of pages of their own, followed by one that faults."""

    def __init__(self) -> None:
        self.mappings: list[tuple[int, int]] = []

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, contiguous, in memory that ends at a guard page."""
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // mmap.PAGESIZE)
        total = (pages + 1) * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = LIBC.mmap(None, total, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert address != FAILED, ctypes.get_errno()
        self.mappings.append((address, total))
        guard = address + pages * mmap.PAGESIZE
        assert LIBC.mprotect(guard, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
        buffer = (ctypes.c_char * size).from_address(guard - size)
        guarded = torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape)
        return guarded.copy_(tensor)

    def release(self) -> None:
        for address, total in self.mappings:
            assert LIBC.munmap(address, total) == 0
        self.mappings.clear()


@pytest.fixture
def memory() -> Iterator[GuardedMemory]:
    guarded = GuardedMemory()
    yield guarded
    guarded.release()


def forward_and_backward(problem: Problem) -> list[torch.Tensor]:
    """out and the gradients, in memory of their own."""
    leaves = problem.leaves()
    torch.manual_seed(0)
    out = flash_attention.attention(**leaves, **problem.options)
    grads = torch.autograd.grad(out, [leaves[n] for n in problem.differentiable], problem.grad_out)
    return [out.detach(), *grads]


def assert_reads_stay_inside(problem: Problem, memory: GuardedMemory) -> None:
    expected = forward_and_backward(problem)
    problem.inputs = {name: memory.copy(t) for name, t in problem.inputs.items()}
    problem.grad_out = memory.copy(problem.grad_out)
    if "query_positions" in problem.options:
        problem.options["query_positions"] = memory.copy(problem.options["query_positions"])
    for actual, wanted in zip(forward_and_backward(problem), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=CLOSE[problem.dtype])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 33, 63, 65])
@pytest.mark.parametrize("dtype", DTYPES + NARROW, ids=dtype_name)
def test_every_width(dtype: torch.dtype, width: int, memory: GuardedMemory) -> None:
    for value_dim in {width, 1, 6, 13}:
        spec = Spec(1, 1, queries=7, keys=11, head_dim=width, value_dim=value_dim)
        assert_reads_stay_inside(make_problem(spec, dtype), memory)


@pytest.mark.parametrize("keys", [1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 24, 25, 31, 63, 65, 129])
@pytest.mark.parametrize("queries", [1, 5, 8, 23, 25, 97])
@pytest.mark.parametrize("dtype", DTYPES + NARROW, ids=dtype_name)
def test_every_length(dtype: torch.dtype, queries: int, keys: int, memory: GuardedMemory) -> None:
    spec = Spec(1, 1, queries=queries, keys=keys, head_dim=5, value_dim=3)
    assert_reads_stay_inside(make_problem(spec, dtype), memory)


OPTIONS = {
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


@pytest.mark.parametrize("lengths", [(7, 9), (33, 65), (100, 131)], ids=str)
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES + NARROW, ids=dtype_name)
def test_every_option(
    dtype: torch.dtype,
    option: dict[str, object],
    lengths: tuple[int, int],
    memory: GuardedMemory,
) -> None:
    spec = Spec(1, 2, queries=lengths[0], keys=lengths[1], head_dim=9, value_dim=7, **option)
    assert_reads_stay_inside(make_problem(spec, dtype), memory)
