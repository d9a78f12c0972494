"""Checks of flash-attn's arguments, and their translation to the options of `attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Shapes", "compute_dtype", "integers", "lengths_between", "score_options"]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Window = Sequence[int] | Tensor


class Shapes:
    """Checks the tensors of one call against sizes that have names.

    The first tensor with an axis of a name sets its size; the later ones must have the same.
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self._sizes: dict[str | int, int] = {2: 2, 3: 3}  # axes of a fixed size name themselves

    def __getitem__(self, axis: str) -> int:
        return self._sizes[axis]

    def check(self, name: str, tensor: Tensor, *axes: str | int) -> None:
        """Raises TypeError or ValueError unless `tensor` is one with these axes."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self.function}: expected {name} to be a tensor, got {tensor!r}")
        shape, known = tensor.shape, self._sizes.get
        matches = len(shape) == len(axes)
        for axis, size in zip(axes, shape, strict=False):
            matches = matches and known(axis, size) == size
        if not matches:
            words = [
                str(axis) if known(axis) in (None, axis) else f"{axis} = {known(axis)}"
                for axis in axes
            ]
            raise ValueError(
                f"{self.function}: expected {name} [{', '.join(words)}], got {list(shape)}"
            )
        self._sizes.update(zip(axes, shape, strict=True))

    def set(self, axis: str, size: int) -> None:
        """Sets the size of an axis that no tensor has yet."""
        self._sizes[axis] = size

    def check_slopes(self, alibi_slopes: Tensor, q: Tensor) -> None:
        """Raises TypeError or ValueError unless they are [nheads] or [batch, nheads], as for q."""
        axes = ("nheads",) if alibi_slopes.dim() == 1 else ("batch", "nheads")
        self.check("alibi_slopes", alibi_slopes, *axes)
        if alibi_slopes.dtype not in (torch.float32, q.dtype):
            raise TypeError(
                f"{self.function}: expected alibi_slopes of float32 or {q.dtype}, got "
                f"{alibi_slopes.dtype}"
            )

    def check_dtype(self, q: Tensor, q_name: str = "q", **others: Tensor) -> None:
        """Raises TypeError unless q is floating and the others have its dtype."""
        if q.dtype not in FLOATING:
            raise TypeError(
                f"{self.function}: expected {q_name} of float32, float64, bfloat16 or float16, "
                f"got {q.dtype}"
            )
        for name, tensor in others.items():
            if tensor.dtype != q.dtype:
                raise TypeError(
                    f"{self.function}: expected {name} of {q.dtype}, the dtype of {q_name}, "
                    f"got {tensor.dtype}"
                )

    def check_heads(self, name: str = "k") -> None:
        """Raises ValueError unless the key heads divide the query heads."""
        heads, key_heads = self["nheads"], self["nheads_k"]
        if key_heads < 1 or heads % key_heads != 0:
            raise ValueError(
                f"{self.function}: expected the {heads} heads of q to be a multiple of the heads "
                f"of {name}, got {key_heads}"
            )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in, and the dtype of softmax_lse."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _window(function: str, window_size: Window) -> tuple[int, int]:
    """(left, right), -1 for each side without a bound: flash-attn takes any negative number."""
    try:
        left, right = (int(side) for side in window_size)
    except (TypeError, ValueError):
        raise ValueError(
            f"{function}: expected window_size (left, right), two whole numbers, got "
            f"{window_size!r}"
        ) from None
    return max(left, -1), max(right, -1)


def score_options(
    shapes: Shapes,
    q: Tensor,
    *,
    softmax_scale: float | None,
    causal: bool,
    window_size: Window,
    softcap: float,
    alibi_slopes: Tensor | None,
    dropout_p: float = 0.0,
) -> dict[str, Any]:
    """The options of `flash_attention.attention` that mean the same."""
    if alibi_slopes is not None:
        shapes.check_slopes(alibi_slopes, q)
        # flash-attn's slopes are float32, whatever the dtype of q.
        alibi_slopes = alibi_slopes.to(compute_dtype(q.dtype))
    if not math.isfinite(softcap):
        raise ValueError(f"{shapes.function}: expected a finite softcap, got {softcap}")
    return {
        "causal": bool(causal),
        "window": _window(shapes.function, window_size),
        "alibi_slopes": alibi_slopes,
        "softcap": 0.0 if softcap <= 0 else softcap,
        "scale": None if softmax_scale is None else float(softmax_scale),
        "dropout": dropout_p,
    }


def integers(function: str, name: str, tensor: Tensor, count: int) -> list[int]:
    """The elements of `tensor`, int32 or int64 [count]."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64):
        found = tensor.dtype if isinstance(tensor, Tensor) else repr(tensor)
        raise TypeError(f"{function}: expected {name} to be an int32 tensor, got {found}")
    if tensor.shape != (count,):
        raise ValueError(f"{function}: expected {name} [{count}], got {list(tensor.shape)}")
    return [int(element) for element in tensor.tolist()]


def lengths_between(
    function: str, name: str, cu_seqlens: Tensor, count: int, rows: int | None = None
) -> list[int]:
    """The lengths of `count` sequences from their offsets; the last is `rows`, if that is given."""
    offsets = integers(function, name, cu_seqlens, count + 1)
    lengths = [end - begin for begin, end in zip(offsets, offsets[1:], strict=False)]
    if offsets[0] != 0 or min(lengths, default=0) < 0 or rows not in (None, offsets[-1]):
        end = "" if rows is None else f" to the {rows} rows there are"
        raise ValueError(
            f"{function}: expected {name} that rise from 0{end}, got {offsets[0]} to "
            f"{offsets[-1]}, with a shortest sequence of {min(lengths, default=0)}"
        )
    return lengths
