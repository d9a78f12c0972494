"""A child forked from a multithreaded parent computes the same results, on its own threads.

OpenMP's threads exist only in the parent. A child that tried to use them would hang.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.forked import run_forked
from support.measuring import threads

SHAPE = (2, 8, 256, 32)


def own_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def random_tensor(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator)


def attention_and_gradients() -> list[Tensor]:
    """Large enough for two threads, and laid out so that torch copies it on two threads."""
    query, key, value = (
        random_tensor(*SHAPE).mT.contiguous().mT.requires_grad_() for _ in range(3)
    )
    out, lse = flash_attention.attention_with_lse(query, key, value, causal=True)
    grads = torch.autograd.grad(out.sin().sum() + lse.sum(), (query, key, value))
    return [out.detach(), lse.detach(), *grads]


def packed_and_gradients() -> list[Tensor]:
    query, key, value = (random_tensor(2048, 8, 32).requires_grad_() for _ in range(3))
    starts = torch.tensor([0, 100, 900, 2048])
    out = flash_attention.varlen_attention(query, key, value, starts, starts)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), (query, key, value))]


def decoding() -> list[Tensor]:
    query, keys = random_tensor(1, 8, 1, 64), random_tensor(1, 8, 8192, 64)
    return [flash_attention.attention(query, keys, keys)]


def second_derivatives() -> list[Tensor]:
    query, key, value = (random_tensor(1, 2, 128, 16).requires_grad_() for _ in range(3))
    out = flash_attention.attention(query, key, value)
    (first,) = torch.autograd.grad(out.sin().sum(), query, create_graph=True)
    return [first.detach(), *torch.autograd.grad(first.square().sum(), (query, key, value))]


def dropout() -> list[Tensor]:
    torch.manual_seed(3)
    query, key, value = (random_tensor(*SHAPE).requires_grad_() for _ in range(3))
    out = flash_attention.attention(query, key, value, dropout=0.3)
    mask = flash_attention.dropout_mask(2, 8, 256, 256, 0.5)
    return [out.detach(), mask, *torch.autograd.grad(out.sin().sum(), (query, key, value))]


CALLS: dict[str, Callable[[], list[Tensor]]] = {
    "attention": attention_and_gradients,
    "packed": packed_and_gradients,
    "decoding": decoding,
    "second-derivatives": second_derivatives,
    "dropout": dropout,
}


def arrays(tensors: list[Tensor]) -> list[Any]:
    """Arrays, which pass through a pipe without torch's shared memory."""
    return [t.numpy() for t in tensors]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_child_matches_parent(call: Callable[[], list[Tensor]]) -> None:
    with threads(2):
        expected = call()
        found = run_forked(lambda: arrays(call()))
        again = call()
    assert len(found) == len(expected)
    for one, other, after in zip(expected, found, again, strict=True):
        assert torch.equal(one, torch.from_numpy(other)) and torch.equal(one, after)


def test_child_starts_its_own_threads() -> None:
    """It is not limited to one thread."""

    def child() -> tuple[int, int, int]:
        before = own_threads()
        attention_and_gradients()
        return before, own_threads(), torch.get_num_threads()

    with threads(3):
        attention_and_gradients()
        assert run_forked(child) == (1, 3, 3)


def test_fork_after_torch_threads_only() -> None:
    def torch_alone() -> Tensor:
        return random_tensor(1 << 20).sin()

    with threads(2):
        torch_alone()
        expected = attention_and_gradients()
        torch_alone()
        found = run_forked(lambda: [torch_alone().numpy(), *arrays(attention_and_gradients())])
    for one, other in zip(expected, found[1:], strict=True):
        assert torch.equal(one, torch.from_numpy(other))


def test_fork_in_a_forked_child() -> None:
    def child() -> list[Any]:
        attention_and_gradients()
        pid = os.fork()
        if pid == 0:
            attention_and_gradients()
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        return arrays(attention_and_gradients())

    with threads(2):
        expected = attention_and_gradients()
        found = run_forked(child)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.from_numpy(other))


def test_fork_from_a_python_thread() -> None:
    """Each Python thread has its own OpenMP team; the child loses that of the forking thread."""
    found: list[Any] = []

    def fork() -> None:
        attention_and_gradients()
        found.extend(run_forked(lambda: arrays(attention_and_gradients())))

    with threads(2):
        expected = attention_and_gradients()
        beside = threading.Thread(target=fork)
        beside.start()
        beside.join()
        again = attention_and_gradients()
    for one, other, after in zip(expected, found, again, strict=True):
        assert torch.equal(one, torch.from_numpy(other)) and torch.equal(one, after)


def test_fork_from_a_single_threaded_parent() -> None:
    with threads(1):
        expected = attention_and_gradients()
        found = run_forked(lambda: arrays(attention_and_gradients()))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.from_numpy(other))


def test_child_with_more_threads_than_its_parent() -> None:
    """The parent has started two threads, but forks while limited to one."""

    def child() -> list[Any]:
        torch.set_num_threads(2)
        return arrays(attention_and_gradients())

    with threads(2):
        expected = attention_and_gradients()
        torch.set_num_threads(1)
        found = run_forked(child)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.from_numpy(other))


LOADED_AFTER_THE_FORK = """
import os, signal, threading, torch
torch.set_num_threads(2)
torch.randn(1 << 20).sin()  # starts threads, which stay in this process
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    torch.set_num_threads(1)
    import flash_attention
    event = threading.Event()
    other = threading.Thread(target=event.wait)
    other.start()
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0)
    _, status = os.waitpid(grandchild, 0)
    query = torch.randn(1, 2, 64, 8)
    flash_attention.attention(query, query, query)
    event.set()
    os._exit(os.waitstatus_to_exitcode(status))
_, status = os.waitpid(pid, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


def test_import_in_a_child_of_a_multithreaded_parent() -> None:
    """A single-threaded worker that forks does not wait for threads it never had."""
    assert subprocess.run([sys.executable, "-c", LOADED_AFTER_THE_FORK]).returncode == 0
