"""shard_sequence and unshard_sequence: any length, dimension and dtype, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from support.process_pool import ProcessPool

pytestmark = pytest.mark.once

LENGTHS = [0, 1, 2, 7, 16, 50]
DTYPES = [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


def cut_and_join(load_balance: str | None) -> None:
    from flash_attention.distributed import shard_sequence, unshard_sequence

    for index, length in enumerate(LENGTHS):
        for dim in (0, 1, -1):
            dtype = DTYPES[(index + dim) % len(DTYPES)]
            shape = [3, 2, 4]
            shape[dim] = length
            whole = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
            part = shard_sequence(whole, dim, load_balance=load_balance)
            joined = unshard_sequence(part, dim, load_balance=load_balance)
            assert joined.dtype is dtype
            assert torch.equal(joined, whole), (length, dim, dtype)


@pytest.mark.parametrize("load_balance", [None, "zigzag"])
def test_joining_the_parts_gives_the_whole(
    processes: ProcessPool, load_balance: str | None
) -> None:
    processes.run(cut_and_join, load_balance)


def parts(length: int, load_balance: str | None) -> list[int]:
    from flash_attention.distributed import shard_sequence

    return shard_sequence(torch.arange(length), 0, load_balance=load_balance).tolist()


def test_which_process_holds_which_rows(two_processes: ProcessPool) -> None:
    assert two_processes.run(parts, 5, None) == [[0, 1, 2], [3, 4]]
    assert two_processes.run(parts, 8, "zigzag") == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert two_processes.run(parts, 5, "zigzag") == [[0, 1, 4], [2, 3]]


def joined_with_gradients() -> None:
    from flash_attention.distributed import shard_sequence, unshard_sequence

    rank, size = dist.get_rank(), dist.get_world_size()
    for load_balance in (None, "zigzag"):
        part = shard_sequence(
            torch.arange(14.0, dtype=torch.float64).reshape(2, 7), 1, load_balance=load_balance
        )
        part.requires_grad_()
        whole = unshard_sequence(part, 1, load_balance=load_balance)
        # The loss of process r is (r + 1) sum(x^2), so that of all is n (n + 1) / 2 times that.
        ((rank + 1) * whole.square()).sum().backward()
        expected = size * (size + 1) * part.detach()
        dist.barrier()  # a failure keeps no process waiting
        assert torch.equal(part.grad, expected)


def test_the_gradient_is_that_of_the_sum_of_all_losses(processes: ProcessPool) -> None:
    processes.run(joined_with_gradients)


def uneven_parts() -> torch.Tensor:
    from flash_attention.distributed import unshard_sequence

    rank = dist.get_rank()
    return unshard_sequence(torch.full((2, 3 * rank), rank), -1)


def test_any_number_of_rows(four_processes: ProcessPool) -> None:
    row = [1] * 3 + [2] * 6 + [3] * 9
    for joined in four_processes.run(uneven_parts):
        assert joined.tolist() == [row, row]


def of_a_group() -> list[int]:
    from flash_attention.distributed import context_parallel_attention, shard_sequence

    rank = dist.get_rank()
    groups = [dist.new_group([3, 1]), dist.new_group([0, 2])]
    group = groups[0] if rank % 2 else groups[1]
    x = torch.ones(1, 2, 5, 8)
    context_parallel_attention(x, x, x, group=group, causal=True)
    return shard_sequence(torch.arange(4), 0, group=group).tolist()


def test_a_group_of_some_processes(four_processes: ProcessPool) -> None:
    assert four_processes.run(of_a_group) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def lazy_conjugates() -> None:
    from flash_attention.distributed import unshard_sequence

    rank = dist.get_rank()
    part = torch.complex(torch.full((2,), float(rank)), torch.tensor([1.0, 2.0]))
    joined = unshard_sequence(part.conj(), 0)
    imaginary = unshard_sequence(part.conj().imag, 0)
    assert joined.tolist() == [0 - 1j, 0 - 2j, 1 - 1j, 1 - 2j]
    assert imaginary.tolist() == [-1.0, -2.0] * 2


def test_lazy_conjugates_are_sent_as_what_they_are(two_processes: ProcessPool) -> None:
    two_processes.run(lazy_conjugates)
