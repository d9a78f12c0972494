"""Whether all processes of a group make the same call, checked before the first long message.

A call whose arguments differ between processes would wait for messages that nobody sends, or take
their bytes for something else. So each process sends a hash of what must be equal. Where the hashes
differ, or an argument of some process is invalid, a second message tells every process why.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attention.distributed.communication import Channel

__all__ = ["Shared", "agree", "digest"]

# Longer explanations are cut.
EXPLANATION_BYTES = 4096

# Of the calls of this process.
_numbers = itertools.count()


class Shared(NamedTuple):
    """What the processes tell each other besides the hash."""

    lengths: list[int]
    """The rows of each process."""
    seed: int
    """The seed of the first process."""


def digest(tensor: Tensor | None) -> str:
    """A hash of dtype, shape and elements, to compare a small tensor between processes."""
    if tensor is None:
        return "none"
    # Not .numpy(), which needs numpy.
    data = bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).tolist())
    name = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    return f"{name} with hash {hashlib.sha256(data).hexdigest()[:12]}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _tell_everybody(channel: Channel, text: str) -> list[str]:
    data = text.encode()[:EXPLANATION_BYTES].ljust(EXPLANATION_BYTES, b"\0")
    told = channel.all_gather(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in told]


def _difference(what: str, told: list[str]) -> ValueError:
    try:
        calls = [json.loads(text) for text in told]
    except json.JSONDecodeError:
        return ValueError(f"{what}: expected the same call on every process, got {told}")
    for name in calls[0]:
        for process, call in enumerate(calls):
            # As text, in which NaN is NaN and -0.0 is not 0.0.
            if json.dumps(call.get(name)) != json.dumps(calls[0][name]):
                return ValueError(
                    f"{what}: expected the same {name} on every process, got {calls[0][name]} on "
                    f"process 0 and {call.get(name)} on process {process}"
                )
    return ValueError(f"{what}: expected the same call on every process, got {told}")


def agree(
    channel: Channel,
    what: str,
    call: Mapping[str, object],
    length: int,
    seed: int = 0,
    error: Exception | None = None,
) -> Shared:
    """Returns once all processes are known to make the same call, of which it sets the number.

    Args:
        channel: the processes.
        what: the name of the function, for messages.
        call: what must be equal on all processes, as JSON values; `what` is a part of it.
        length: the number of rows of this process.
        seed: for dropout.
        error: why this process cannot make the call. It is raised here, and told to the others,
            which would wait for this process otherwise.

    Raises:
        ValueError: the calls differ, or another process has an error.
        RuntimeError: a process has ended, or did not answer within the timeout of the group.
    """
    text = json.dumps({"function": what, **call})
    header = torch.tensor(
        [error is None, _hash(text), length, seed, next(_numbers)], dtype=torch.int64
    )
    valid, hashes, lengths, seeds, numbers = channel.all_gather(header).unbind(1)
    if not valid.all():
        reasons = _tell_everybody(channel, "" if error is None else f"{error}")
        if error is not None:
            raise error
        process = int(valid.argmin())
        raise ValueError(f"{what}: process {process} refused its arguments: {reasons[process]}")
    if (hashes != hashes[0]).any():
        raise _difference(what, _tell_everybody(channel, text))
    channel.number = int(numbers[0])
    return Shared(lengths.tolist(), int(seeds[0]))
