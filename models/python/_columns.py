"""One column or series of any kind as a tensor or as a list."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether `tensor` is on the CPU, with one element after another."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return plain and not tensor.is_quantized and not tensor.is_nested


def to_array(values: Any, what: str) -> Any:
    """`values`, as NumPy's array where they have one.

    Raises:
        ValueError: some values are masked.
    """
    # A list of pandas or polars is not indexed by position.
    if not isinstance(values, Tensor) and hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if hasattr(values, "filled") and hasattr(values, "mask"):
        if values.mask.any():
            raise ValueError(
                f"Forecaster: expected {what} without masked values, got {values.mask.sum()} of "
                "them; fill them or drop their rows"
            )
        values = values.filled()
    return values


def to_tensor(values: Any, what: str) -> Tensor:
    """A tensor of numbers; Python's floats as float64."""
    if isinstance(values, Tensor):
        return values
    array = to_array(values, what)
    try:
        if hasattr(array, "flags") and hasattr(array, "strides"):
            if not array.flags.writeable or any(stride < 0 for stride in array.strides):
                array = array.copy()  # torch warns of the one, and refuses the other
        tensor = torch.as_tensor(array)
        if isinstance(array, (list, tuple)) and tensor.is_floating_point():
            tensor = torch.as_tensor(array, dtype=torch.float64)
        return tensor
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"Forecaster: expected numbers in {what}, got {type(values).__name__}: {error}"
        ) from error


def to_list(values: Any, what: str) -> list[Any]:
    """The elements as Python's objects."""
    try:
        if isinstance(values, (str, bytes, Mapping, Set)) or hasattr(values, "columns"):
            raise TypeError("which is no sequence of them")
        for method in ("tolist", "to_list"):
            if hasattr(values, method):
                elements = getattr(values, method)()
                break
        else:
            elements = list(values)
        if not isinstance(elements, list):
            raise TypeError("which has no rows")
        return elements
    except TypeError as error:
        raise ValueError(
            f"Forecaster: expected a value for each row in {what}, got {type(values).__name__}: "
            f"{error}"
        ) from error
