"""A child forked after threads have run: it computes what its parent does, on threads of its own.

OpenMP's threads stay with the parent. A child that took them for its own would wait for good.
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
from isolated import isolated
from measuring import threads
from torch import Tensor

SHAPE = (2, 8, 256, 32)


def own_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator)


def attention_and_gradients() -> list[Tensor]:
    """Large enough for two threads, and laid out so that torch copies it on two threads."""
    query, key, value = (numbers(*SHAPE).mT.contiguous().mT.requires_grad_() for _ in range(3))
    out, lse = flash_attention.attention_with_lse(query, key, value, causal=True)
    grads = torch.autograd.grad(out.sin().sum() + lse.sum(), (query, key, value))
    return [out.detach(), lse.detach(), *grads]


def packed_and_gradients() -> list[Tensor]:
    query, key, value = (numbers(2048, 8, 32).requires_grad_() for _ in range(3))
    starts = torch.tensor([0, 100, 900, 2048])
    out = flash_attention.varlen_attention(query, key, value, starts, starts)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), (query, key, value))]


def decoding() -> list[Tensor]:
    query, keys = numbers(1, 8, 1, 64), numbers(1, 8, 8192, 64)
    return [flash_attention.attention(query, keys, keys)]


def second_derivatives() -> list[Tensor]:
    query, key, value = (numbers(1, 2, 128, 16).requires_grad_() for _ in range(3))
    out = flash_attention.attention(query, key, value)
    (first,) = torch.autograd.grad(out.sin().sum(), query, create_graph=True)
    return [first.detach(), *torch.autograd.grad(first.square().sum(), (query, key, value))]


def dropout() -> list[Tensor]:
    torch.manual_seed(3)
    query, key, value = (numbers(*SHAPE).requires_grad_() for _ in range(3))
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


def lists(tensors: list[Tensor]) -> list[Any]:
    """What passes through a pipe without torch's shared memory."""
    return [t.numpy() for t in tensors]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_child_computes_what_its_parent_did(call: Callable[[], list[Tensor]]) -> None:
    with threads(2):
        expected = call()
        found = isolated(lambda: lists(call()))
        again = call()
    assert len(found) == len(expected)
    for one, other, after in zip(expected, found, again, strict=True):
        assert torch.equal(one, torch.from_numpy(other)) and torch.equal(one, after)


def test_the_child_has_threads() -> None:
    """It is neither slowed to one thread nor told so."""

    def child() -> tuple[int, int, int]:
        before = own_threads()
        attention_and_gradients()
        return before, own_threads(), torch.get_num_threads()

    with threads(3):
        attention_and_gradients()
        assert isolated(child) == (1, 3, 3)


def test_after_threads_of_torch_alone() -> None:
    def torch_alone() -> Tensor:
        return numbers(1 << 20).sin()

    with threads(2):
        torch_alone()
        expected = attention_and_gradients()
        torch_alone()
        found = isolated(lambda: [torch_alone().numpy(), *lists(attention_and_gradients())])
    for one, other in zip(expected, found[1:], strict=True):
        assert torch.equal(one, torch.from_numpy(other))


def test_a_child_of_the_child() -> None:
    def child() -> list[Any]:
        attention_and_gradients()
        pid = os.fork()
        if pid == 0:
            attention_and_gradients()
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        return lists(attention_and_gradients())

    with threads(2):
        expected = attention_and_gradients()
        found = isolated(child)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.from_numpy(other))


def test_forked_by_a_thread_of_python() -> None:
    """The threads that are lost are those of the thread that forks; each has its own."""
    found: list[Any] = []

    def fork() -> None:
        attention_and_gradients()
        found.extend(isolated(lambda: lists(attention_and_gradients())))

    with threads(2):
        expected = attention_and_gradients()
        beside = threading.Thread(target=fork)
        beside.start()
        beside.join()
        again = attention_and_gradients()
    for one, other, after in zip(expected, found, again, strict=True):
        assert torch.equal(one, torch.from_numpy(other)) and torch.equal(one, after)


def test_a_parent_on_one_thread() -> None:
    with threads(1):
        expected = attention_and_gradients()
        found = isolated(lambda: lists(attention_and_gradients()))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.from_numpy(other))


def test_a_child_with_more_threads_than_its_parent_when_it_forked() -> None:
    """The parent has threads, and is told to use one from then on."""

    def child() -> list[Any]:
        torch.set_num_threads(2)
        return lists(attention_and_gradients())

    with threads(2):
        expected = attention_and_gradients()
        torch.set_num_threads(1)
        found = isolated(child)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.from_numpy(other))


LOADED_AFTER_THE_FORK = """
import os, signal, threading, torch
torch.set_num_threads(2)
torch.randn(1 << 20).sin()  # threads, which stay here
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


def test_loaded_in_a_child_whose_parent_had_threads() -> None:
    """A worker on one thread that starts processes does not wait for threads it never had."""
    assert subprocess.run([sys.executable, "-c", LOADED_AFTER_THE_FORK]).returncode == 0
