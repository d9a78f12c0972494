"""Every way in which a tensor argument can be invalid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
Change = tuple[str, str, Any]  # argument name, description of the change, new value

DTYPES = (torch.float64, torch.float16, torch.int32, torch.int64, torch.bool, torch.complex64)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def resized(tensor: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every dimension one longer, one shorter and empty; one dimension more and one fewer."""
    shape = tuple(tensor.shape)
    for d, n in enumerate(shape):
        for change, size in (("+ 1", n + 1), ("- 1", n - 1), ("= 0", 0)):
            yield f"{d} {change}", (*shape[:d], size, *shape[d + 1 :])
    yield "add", (1, *shape)
    yield "drop", shape[1:]


def tensor_changes(arguments: Arguments) -> Iterator[Change]:
    """Each tensor with another size, dtype, device, layout or storage, or None."""
    for name, tensor in arguments.items():
        if not isinstance(tensor, Tensor):
            continue
        for change, shape in resized(tensor):
            yield name, change, tensor.new_zeros(shape)
        for dtype in DTYPES:
            if dtype != tensor.dtype:
                yield name, str(dtype).removeprefix("torch."), tensor.to(dtype)
        yield name, "device", tensor.new_zeros(tensor.shape, device="meta")
        yield name, "sparse", tensor.to_sparse()
        yield name, "shrunk", shrunk(tensor)
        yield name, "None", None


def shrunk(tensor: Tensor) -> Tensor:
    """A tensor whose storage was shrunk under it, as sharded training does to parameters."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(copy.untyped_storage().nbytes() - 1)
    return copy
