"""A score_mod or mask_mod as a list of operations on scalars, and its evaluation on blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["AXES", "Axes", "ModError", "Program", "Subprogram", "Value", "over_axes", "tabulate"]

# What an index argument counts: batches, query heads, queries and keys.
AXES = ("b", "h", "q", "kv")
Axes = frozenset[str]


class ModError(ValueError):
    """A score_mod or mask_mod that cannot be evaluated."""


@dataclass(eq=False)
class Value:
    """A tensor of a program: an argument, a captured tensor or the result of an operation.

    `axes` names the arguments that it depends on: "score" and those of AXES. dtype and shape are
    those of one evaluation, on scalars; None for an operation of several results.
    """

    axes: Axes = frozenset()
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None
    target: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tensor: Tensor | None = None

    @property
    def operation(self) -> object:
        """The operator without its overload; None for arguments and captured tensors."""
        return getattr(self.target, "overloadpacket", None)

    def operands(self) -> list[Value]:
        leaves = tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def compute(self, found: dict[Value, Any]) -> Any:
        """The result, from those of the operands."""
        if self.tensor is not None:
            return self.tensor
        assert self.target is not None, "an argument without a tensor"
        args = [_filled(argument, found) for argument in self.args]
        kwargs = {name: _filled(argument, found) for name, argument in self.kwargs.items()}
        return self.target(*args, **kwargs)


def _filled(argument: Any, found: dict[Value, Any]) -> Any:
    """`argument` with results in place of values."""
    if isinstance(argument, Value):
        return found[argument]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_filled(each, found) for each in argument)
    return argument


@dataclass(frozen=True)
class Program:
    """The steps of one evaluation of `name`, score_mod or mask_mod, in their order."""

    name: str
    arguments: dict[str, Value]
    steps: list[Value]
    output: Value

    def needed(self, wanted: Iterable[Value], known: Iterable[Value] = ()) -> list[Value]:
        """The steps that compute `wanted` from `known`."""
        given, needed = set(known), set(wanted)
        for value in reversed(self.steps):
            if value in needed and value not in given:
                needed.update(value.operands())
        return [value for value in self.steps if value in needed and value not in given]

    def invariants(self) -> list[Value]:
        """What does not depend on an argument, and is used by something that does."""
        if not self.output.axes:
            return [self.output]
        found: dict[Value, None] = {}
        for value in self.needed([self.output]):
            if value.axes:
                found.update((each, None) for each in value.operands() if not each.axes)
        return list(found)


class Subprogram:
    """A function of some values of a program that returns others."""

    def __init__(
        self, program: Program, parameters: Sequence[Value], results: Sequence[Value]
    ) -> None:
        self._parameters = list(parameters)
        self._results = list(results)
        self._steps = program.needed(results, parameters)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found: dict[Value, Any] = dict(zip(self._parameters, tensors, strict=True))
        for value in self._steps:
            found[value] = value.compute(found)
        return tuple(found[value] for value in self._results)

    def single(self, *tensors: Tensor) -> Tensor:
        """The only result."""
        (result,) = self(*tensors)
        return result


def over_axes(
    name: str, function: Callable[..., Tensor], axes: Sequence[Iterable[str]]
) -> Callable[..., Tensor]:
    """`function` of scalars, vectorised over the axes that its arguments have.

    Argument n has the dimensions axes[n], in the order of AXES; the result has all that occur.
    """
    for axis in reversed(AXES):
        dims = tuple(0 if axis in each else None for each in axes)
        if any(dim is not None for dim in dims):
            function = torch.vmap(function, in_dims=dims)

    def checked(*tensors: Tensor) -> Tensor:
        try:
            return function(*tensors)
        except (RuntimeError, IndexError) as error:
            raise ModError(
                f"flex_attention: expected {name} that torch.vmap vectorises over the indices of "
                f"a block, got {type(error).__name__}: {error}"
            ) from error

    return checked


def tabulate(program: Program, value: Value, lengths: dict[str, int]) -> Tensor:
    """`value` for every index of the axes that it depends on: [B or 1, H or 1, L or 1, S or 1]."""
    used = [axis for axis in AXES if axis in value.axes]
    part = Subprogram(program, [program.arguments[axis] for axis in used], [value])
    function = over_axes(program.name, part.single, [(axis,) for axis in used])
    table = function(*(torch.arange(lengths[axis]) for axis in used))
    return table.reshape([lengths[axis] if axis in used else 1 for axis in AXES])
