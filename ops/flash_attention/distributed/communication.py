"""Messages between the processes of a group, of any length and dtype.

Everything is sent from process to process without blocking, so that the order in which processes
arrive cannot cause a deadlock, and pairs of processes that have nothing to send stay silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Channel", "Transfer"]

NAME = "flash_attention.distributed"
# Messages of the caller's own, between the same processes, have other tags.
TAG = 0x464C4153
GRADIENT_TAG = TAG + 1
# Each call has two tags of its own. They are used again after so many calls.
CALLS = 2**20

# Buffers of transfers that failed: the backend may still write to them.
_abandoned: list[object] = []


def _failed(what: str, error: BaseException) -> RuntimeError:
    return RuntimeError(
        f"{NAME}: expected {what} within the timeout of the group, got '{error}'; that process has "
        "ended, or has not made the same calls in the same order"
    )


def _bytes_of(tensor: Tensor) -> Tensor:
    # Not every backend knows every dtype.
    return tensor.view(-1).view(torch.uint8)


class Transfer:
    """Messages on their way."""

    def __init__(self, pending: list[tuple[str, Any, Tensor]]) -> None:
        self._pending = pending

    def wait(self) -> None:
        """Returns when every message has arrived.

        Raises:
            RuntimeError: a process has ended, or the timeout of the group has passed.
        """
        for what, work, _ in self._pending:
            try:
                work.wait()
            except RuntimeError as error:
                _abandoned.append(self._pending)
                raise _failed(what, error) from error
        self._pending = []


class Channel:
    """The processes of a group, by their ranks in it, for one call.

    `number`, which is the same on all processes, tells the messages of calls apart: processes that
    run the backwards of two calls in different orders wait for each other, up to the timeout, and
    do not take the gradients of one call for those of the other.

    Raises:
        RuntimeError: `torch.distributed` is not initialized, or this process is not in the group.
        NotImplementedError: the group has no backend for tensors on the CPU.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                f"{NAME}: expected a process group, got none; start the program with torchrun and "
                "call torch.distributed.init_process_group('gloo') first"
            )
        if group is not None and not isinstance(group, dist.ProcessGroup):
            if group is dist.GroupMember.NON_GROUP_MEMBER:
                raise RuntimeError(
                    f"{NAME}: expected a group that this process, number {dist.get_rank()}, is in, "
                    "got one of other processes"
                )
            raise TypeError(
                f"{NAME}: expected group as a torch.distributed.ProcessGroup or None, got "
                f"{type(group).__name__}"
            )
        found = dist.group.WORLD if group is None else group
        assert found is not None  # after the first check, there is a default group
        self.group = found
        self.number = 0
        try:
            self.rank = dist.get_rank(self.group)
        except ValueError:
            raise RuntimeError(
                f"{NAME}: expected a group of torch.distributed.new_group, got one that it did not "
                "make, or that has been destroyed"
            ) from None
        if self.rank < 0:
            raise RuntimeError(
                f"{NAME}: expected a group that this process, number {dist.get_rank()}, is in, got "
                f"one of processes {dist.get_process_group_ranks(self.group)}"
            )
        self.size = dist.get_world_size(self.group)
        if "cpu:" not in dist.get_backend_config(self.group):
            raise NotImplementedError(
                f"{NAME}: expected a group with a backend for the CPU, got "
                f"{dist.get_backend(self.group)}; create one with backend='gloo'"
            )

    def start(
        self,
        sends: Iterable[tuple[int, Tensor]],
        receives: Iterable[tuple[int, Tensor]],
        tag: int = TAG,
    ) -> Transfer:
        """Starts to send to processes and to receive from them. Tensors are contiguous.

        Empty ones are no message. A tensor that is sent must not change before the wait. Two
        processes match their messages of one call and tag by order.
        """
        tag += 2 * (self.number % CALLS)
        pending: list[tuple[str, Any, Tensor]] = []
        what = ""
        try:
            # Sends before receives: Gloo writes a message at once, in this thread, if its receive
            # is posted already, and its own thread spins meanwhile if the same peer writes, too.
            for post, side, text, messages in (
                (dist.isend, "group_dst", "a message to reach process", sends),
                (dist.irecv, "group_src", "a message from process", receives),
            ):
                for peer, tensor in messages:
                    if tensor.numel() > 0:
                        what = f"{text} {peer}"
                        data = _bytes_of(tensor)
                        work = post(data, group=self.group, tag=tag, **{side: peer})
                        pending.append((what, work, data))
        except RuntimeError as error:
            _abandoned.append(pending)
            raise _failed(what, error) from error
        return Transfer(pending)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[W, ...] from the tensors of all processes, of one shape."""
        result = tensor.new_empty((self.size, *tensor.shape))
        try:
            dist.all_gather_single(result.view(-1), tensor.view(-1), group=self.group)
        except RuntimeError as error:
            raise _failed("a message from every process", error) from error
        return result
