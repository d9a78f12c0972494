"""Changes of scores in the form that the kernels have: scale, softcap, ALiBi, bias, a mask.

Read from the operations of a score_mod, with the tensors that it captured evaluated in O(L + S);
a bias for each query and key is read in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from flash_attention.flex.masks import EVERYTHING, Linear, Mask, MaskReader, plain
from flash_attention.flex.program import (
    AXES,
    ModError,
    Program,
    Subprogram,
    Value,
    tabulate,
)
from flash_attention.flex.tiles import Sizes

__all__ = ["Distance", "Scores", "ScoreReader"]

aten = torch.ops.aten

LARGEST = 2.0**100  # a factor that float32 holds


@dataclass(frozen=True)
class Distance:
    """slopes * (k - positions[q]) of key k, or slopes * |k - positions[q]| if not `signed`.

    slopes [B or 1, H or 1], with their gradient; positions int64, broadcasting to [B, H, L].
    """

    slopes: Tensor
    positions: Tensor
    signed: bool


@dataclass(frozen=True)
class Scores:
    """softcap(factor * score) + distance + bias where `mask` attends; softcap 0 is none."""

    factor: float = 1.0
    softcap: float = 0.0
    distance: Distance | None = None
    bias: Tensor | None = None
    mask: Mask = EVERYTHING


class ScoreReader:
    """Reads `Scores` from the operations of a score_mod, for queries of `dtype`."""

    def __init__(self, program: Program, sizes: Sizes, dtype: torch.dtype) -> None:
        self._program = program
        self._score = program.arguments["score"]
        self._sizes = sizes
        self._dtype = dtype
        self._masks = MaskReader(program, sizes)

    def read(self) -> Scores | None:
        """What the score_mod does, or None where it is no `Scores`."""
        value, found = self._program.output, Scores()
        if value.dtype != self._score.dtype:
            return None
        if value.operation is aten.where and self._is_minus_infinity(value.args[2]):
            mask = self._masks.read(value.args[0])
            if mask is None or not isinstance(value.args[1], Value):
                return None
            value, found = value.args[1], replace(found, mask=mask)
        while value.operation in (aten.add, aten.sub):
            parts = self._split(value)
            if parts is None:
                return None
            value, term, sign = parts
            more = self._with_term(found, term, sign)
            if more is None:
                return None
            found = more
        return self._with_factor(found, value)

    def _split(self, value: Value) -> tuple[Value, Value, int] | None:
        """(what depends on the score, what does not, the sign of the latter)."""
        one, other = value.args[:2]
        if not isinstance(one, Value) or not isinstance(other, Value):
            return None
        if len(value.args) > 2 or value.kwargs:  # an alpha
            return None
        if "score" in one.axes and "score" not in other.axes:
            return one, other, 1 if value.operation is aten.add else -1
        if "score" in other.axes and "score" not in one.axes and value.operation is aten.add:
            return other, one, 1
        return None

    def _with_factor(self, found: Scores, value: Value) -> Scores | None:
        """`found` with the factors and the softcap that `value` has on the score."""
        outer, inner = self._factors(value)
        if not 0 < abs(outer) < LARGEST:
            return None
        if inner is self._score:
            return replace(found, factor=float(outer))
        if inner.operation is not aten.tanh or outer <= 0:
            return None
        factor, score = self._factors(inner.args[0])
        if score is not self._score or not 0 < abs(factor * outer) < LARGEST:
            return None
        return replace(found, softcap=float(outer), factor=float(factor * outer))

    def _factors(self, value: Value) -> tuple[Fraction, Value]:
        """The product of the constants that multiply or divide, and what they multiply."""
        product = Fraction(1)
        while value.operation in (aten.mul, aten.div) and not value.kwargs:
            one, other = value.args[:2]
            if value.operation is aten.mul and self._constant(other) is None:
                one, other = other, one
            number = self._constant(other)
            if number is None or not isinstance(one, Value):
                break
            if value.operation is aten.div and number == 0:
                break
            product = product * number if value.operation is aten.mul else product / number
            value = one
        return product, value

    def _constant(self, value: Any) -> Fraction | None:
        """A number, also one in a tensor without a gradient."""
        if isinstance(value, Value) and not value.axes and value.shape == ():
            (tensor,) = Subprogram(self._program, [], [value])()
            value = None if tensor.requires_grad else tensor.item()
        if type(value) not in (int, float) or not math.isfinite(value):
            return None
        return Fraction(value)

    def _is_minus_infinity(self, value: Any) -> bool:
        if isinstance(value, Value) and not value.axes and value.shape == ():
            (tensor,) = Subprogram(self._program, [], [value])()
            value = tensor.item()
        return type(value) is float and value == -math.inf

    def _with_term(self, found: Scores, term: Value, sign: int) -> Scores | None:
        """`found` with a term that does not depend on the score."""
        if term.shape != ():
            return None
        if {"q", "kv"} <= term.axes:
            distance = self._distance(term, sign)
            if distance is not None:
                return None if found.distance is not None else replace(found, distance=distance)
        bias = self._bias(term, sign)
        if bias is None or found.bias is not None:
            return None
        return replace(found, bias=bias)

    def _distance(self, value: Value, sign: int) -> Distance | None:
        """sign * `value` as a Distance, whose factors are numbers and tensors of b and h."""
        score_dtype = self._score.dtype
        if value.dtype not in (score_dtype, torch.int64):
            return None
        slopes = torch.full((1, 1, 1, 1), float(sign), dtype=score_dtype)
        while value.operation in (aten.mul, aten.neg, aten._to_copy):
            if value.operation is aten.mul:
                parts = self._slopes_and_rest(value)
                if parts is None:
                    return None
                slopes, value = slopes * parts[0], parts[1]
            else:
                slopes = -slopes if value.operation is aten.neg else slopes
                value = value.args[0]
            if value.dtype not in (score_dtype, torch.int64):
                return None
        signed = value.operation is not aten.abs
        line = self._masks.linear(value if signed else value.args[0])
        if line is None or abs(line.factor) != 1:
            return None
        positions = _rows(line.times(-line.factor))
        slopes = slopes[:, :, 0, 0] * (line.factor if signed else 1)
        return Distance(slopes, positions, signed)

    def _slopes_and_rest(self, value: Value) -> tuple[Tensor | float, Value] | None:
        """A product as a number or tensor of b and h, and the rest."""
        for one, other in (value.args[:2], value.args[1::-1]):
            if not isinstance(other, Value) or "kv" not in other.axes:
                continue
            if type(one) in (int, float):
                return float(one), other
            if (
                isinstance(one, Value)
                and one.axes <= {"b", "h"}
                and one.shape == ()
                and one.dtype == self._score.dtype
            ):
                return self._table(one), other
        return None

    def _bias(self, value: Value, sign: int) -> Tensor | None:
        """sign * `value` as a bias that broadcasts to [B, H, L, S], without storing [L, S]."""
        if value.dtype not in (self._score.dtype, self._dtype):
            return None
        if not {"q", "kv"} <= value.axes:
            return self._table(value) * sign
        if sign < 0 or value.operation is not aten.index:
            return None
        names = {argument: axis for axis, argument in self._program.arguments.items()}
        table, indices = value.args
        axes = [names.get(plain(index)) for index in indices]
        if table.axes or None in axes or len(set(axes)) < len(axes):
            return None
        if table.shape is None or len(table.shape) != len(axes):
            return None
        (tensor,) = Subprogram(self._program, [], [table])()
        return self._aligned(tensor, [str(axis) for axis in axes])

    def _aligned(self, tensor: Tensor, axes: list[str]) -> Tensor:
        """A view of `tensor`, whose dimensions are `axes`, as [B or 1, H or 1, L, S]."""
        lengths = self._sizes.lengths
        for dim, axis in enumerate(axes):
            if tensor.size(dim) < lengths[axis]:
                raise ModError(
                    f"flex_attention: expected {self._program.name} to read a tensor of at least "
                    f"{lengths[axis]} elements at index {axis}, got {list(tensor.shape)}"
                )
            tensor = tensor.narrow(dim, 0, lengths[axis])
        tensor = tensor.permute([axes.index(axis) for axis in AXES if axis in axes])
        for dim, axis in enumerate(AXES):
            if axis not in axes:
                tensor = tensor.unsqueeze(dim)
        return tensor

    def _table(self, value: Value) -> Tensor:
        """With its gradient."""
        return tabulate(self._program, value, self._sizes.lengths)


def _rows(line: Linear) -> Tensor:
    """The rest of a line, [B or 1, H or 1, L or 1]."""
    return line.rest.expand(1, 1, 1, 1)[..., 0] if line.rest.dim() == 0 else line.rest[..., 0]
