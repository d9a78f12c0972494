"""A program evaluated on a block of scores, with gradients of the tensors that it captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attention.flex.program import AXES, ModError, Program, Subprogram, Value, over_axes

__all__ = ["BlockMod", "Gather", "Indices", "Places"]

aten = torch.ops.aten
Indices = tuple[Tensor, Tensor, Tensor, Tensor]
Places = list[list[Tensor]]


@dataclass(frozen=True)
class Gather:
    """table[indices] of a table that requires a gradient.

    It is evaluated beside the program, so that its gradient is added to the elements that a block
    reads. autograd would fill a tensor of the size of the table for each block.
    """

    value: Value
    table: int  # which of the inputs
    axes: tuple[str, ...]

    def read(self, table: Tensor, places: list[Tensor]) -> Tensor:
        """The elements, with the dimensions `axes` and those that the indices leave."""
        elements = aten.index.Tensor(table, places)
        independent = [n for n, axis in enumerate(AXES) if axis not in self.axes]
        return elements.squeeze(independent) if independent else elements

    def add(self, total: Tensor, places: list[Tensor], elements: Tensor) -> None:
        """Adds what `read` would read of a gradient to `total`."""
        for n, axis in enumerate(AXES):
            if axis not in self.axes:
                elements = elements.unsqueeze(n)
        total.index_put_(tuple(places), elements.to(total.dtype), accumulate=True)


class BlockMod:
    """Evaluates a score_mod or mask_mod on blocks.

    Attributes:
        inputs: the tensors that it reads: those that it captured, or what is computed from them
            alone, with their gradients.
        gathers: the reads of elements of inputs with a gradient.
    """

    def __init__(self, program: Program, differentiable: bool) -> None:
        self.program = program
        values = program.invariants()
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            inputs = Subprogram(program, [], values)()
        self.inputs = inputs if differentiable else tuple(each.detach() for each in inputs)
        table = {v: n for n, v in enumerate(values) if self.inputs[n].requires_grad}
        self.gathers = [
            Gather(value, table[value.args[0]], _axes_of(value.args[1]))
            for value in program.needed([program.output])
            if value.operation is aten.index
            and value.args[0] in table
            and all(isinstance(each, Value) and each.shape == () for each in value.args[1])
        ]
        arguments = list(program.arguments.values())
        known = [gather.value for gather in self.gathers]
        self._places = [
            [Subprogram(program, [*arguments, *values], [each]) for each in gather.value.args[1]]
            for gather in self.gathers
        ]
        self._result = Subprogram(program, [*arguments, *values, *known], [program.output])

    def places(self, scores: Tensor | None, indices: Indices, inputs: Sequence[Tensor]) -> Places:
        """The indices of each gather, each [b or 1, h or 1, q or 1, kv or 1]."""
        tensors, axes = self._arguments(scores, indices, inputs)
        found = []
        for gather, parts in zip(self.gathers, self._places, strict=True):
            first = tuple(slice(None if axis in gather.axes else 1) for axis in AXES)
            each = [over_axes(self.program.name, part.single, axes)(*tensors) for part in parts]
            found.append([index[first] for index in each])
        return found

    def gathered(self, places: Places, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The elements that the gathers read."""
        pairs = zip(self.gathers, places, strict=True)
        try:
            return [gather.read(inputs[gather.table], each) for gather, each in pairs]
        except IndexError as error:
            raise ModError(
                f"flex_attention: expected {self.program.name} to read elements that there are, "
                f"got IndexError: {error}"
            ) from error

    def __call__(
        self,
        scores: Tensor | None,
        indices: Indices,
        inputs: Sequence[Tensor],
        gathered: Sequence[Tensor],
    ) -> Tensor:
        """The results, [b, h, q, kv] as `scores`; `indices` are b, h, q and kv."""
        tensors, axes = self._arguments(scores, indices, inputs)
        axes += [gather.axes for gather in self.gathers]
        function = over_axes(self.program.name, self._result.single, axes)
        return function(*tensors, *gathered)

    def _arguments(
        self, scores: Tensor | None, indices: Indices, inputs: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[tuple[str, ...]]]:
        """The tensors for arguments and inputs, and the axes of each."""
        tensors = [*indices, *inputs]
        axes: list[tuple[str, ...]] = [(axis,) for axis in AXES]
        axes += [()] * len(inputs)
        if scores is not None:
            tensors, axes = [scores, *tensors], [AXES, *axes]
        return tensors, axes


def _axes_of(indices: Sequence[Value]) -> tuple[str, ...]:
    """What the indices of a gather depend on; a score depends on everything."""
    axes = frozenset().union(*(index.axes for index in indices))
    return tuple(axis for axis in AXES if axis in axes or "score" in axes)
