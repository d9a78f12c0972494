"""Masks in the form that the kernels have: ranges of keys, keys for all queries, documents.

Read from the operations of a mask_mod, with the tensors that it captured evaluated in O(L + S).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from flash_attention.flex.program import Program, Value, tabulate
from flash_attention.flex.tiles import Sizes

__all__ = ["EVERYTHING", "Linear", "Mask", "MaskReader", "both", "plain"]

aten = torch.ops.aten

SAME = {aten.alias, aten.clone, aten.detach, aten.lift_fresh}
INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Mask:
    """Query q attends key k if all of it holds:

    low[q] <= k <= high[q], int64, broadcasting to [B, H, L];
    keys[k], bool, broadcasting to [B, H, S];
    documents[0][q] == documents[1][k], integers, broadcasting to [B, H, L] and [B, H, S].

    None holds everywhere.
    """

    low: Tensor | None = None
    high: Tensor | None = None
    keys: Tensor | None = None
    documents: tuple[Tensor, Tensor] | None = None


EVERYTHING = Mask()
NOTHING = Mask(high=torch.tensor(-1))


def _joined(function: Callable[..., Tensor], one: Tensor | None, other: Tensor | None) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return function(one, other)


def both(one: Mask, other: Mask) -> Mask | None:
    """Where both attend; None is no Mask."""
    if one is EVERYTHING or other is EVERYTHING:
        return other if one is EVERYTHING else one
    if one.documents is not None and other.documents is not None:
        return None
    return Mask(
        low=_joined(torch.maximum, one.low, other.low),
        high=_joined(torch.minimum, one.high, other.high),
        keys=_joined(torch.logical_and, one.keys, other.keys),
        documents=one.documents or other.documents,
    )


def either(one: Mask, other: Mask) -> Mask | None:
    """Where one of them attends; None is no Mask."""
    if one is NOTHING or other is EVERYTHING:
        return other
    if other is NOTHING or one is EVERYTHING:
        return one
    conditions = [
        {f.name for f in fields(mask) if getattr(mask, f.name) is not None} for mask in (one, other)
    ]
    if conditions == [{"low"}, {"low"}]:
        return Mask(low=_joined(torch.minimum, one.low, other.low))
    if conditions == [{"high"}, {"high"}]:
        return Mask(high=_joined(torch.maximum, one.high, other.high))
    if conditions == [{"keys"}, {"keys"}]:
        return Mask(keys=_joined(torch.logical_or, one.keys, other.keys))
    return None


@dataclass(frozen=True)
class Linear:
    """factor * k + rest of key k; rest is int64, broadcasting to [B, H, L, 1]."""

    factor: int
    rest: Tensor

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.factor + other.factor, self.rest + other.rest)

    def __sub__(self, other: Linear) -> Linear:
        return self + other.times(-1)

    def times(self, number: int) -> Linear:
        return Linear(self.factor * number, self.rest * number)


def plain(value: Any) -> Any:
    """`value` without operations that change none of its elements; it has no gradient."""
    while isinstance(value, Value) and value.operation in SAME:
        value = value.args[0]
    return value


class MaskReader:
    """Reads masks from the operations of a program."""

    def __init__(self, program: Program, sizes: Sizes) -> None:
        self._program = program
        self._key = program.arguments["kv"]
        self._lengths = sizes.lengths

    def read(self, value: Any) -> Mask | None:
        """The mask that `value` is, or None where it is no Mask."""
        value = plain(value)
        if isinstance(value, bool):
            return EVERYTHING if value else NOTHING
        if not isinstance(value, Value) or value.dtype != torch.bool or value.shape != ():
            return None
        if "score" in value.axes:
            return None
        if "kv" not in value.axes:
            rows = self._table(value)[..., 0]
            if rows.all():
                return EVERYTHING
            if not rows.any():
                return NOTHING
            return Mask(high=torch.where(rows, self._lengths["kv"], -1))
        found = self._operation(value)
        if found is None and "q" not in value.axes:
            return Mask(keys=self._table(value)[:, :, 0])
        return found

    def _operation(self, value: Value) -> Mask | None:
        operation = value.operation
        if operation in (aten.bitwise_and, aten.logical_and):
            return self._combined(both, value)
        if operation in (aten.bitwise_or, aten.logical_or):
            return self._combined(either, value)
        if operation is aten.eq:
            return self._equal(*value.args[:2])
        if operation in (aten.ge, aten.gt):
            larger, smaller = value.args[:2]
            return self._at_most(smaller, larger, strict=operation is aten.gt)
        if operation in (aten.le, aten.lt):
            smaller, larger = value.args[:2]
            return self._at_most(smaller, larger, strict=operation is aten.lt)
        return None

    def _combined(self, function: Callable[[Mask, Mask], Mask | None], value: Value) -> Mask | None:
        one, other = (self.read(each) for each in value.args[:2])
        return None if one is None or other is None else function(one, other)

    def _at_most(self, smaller: Any, larger: Any, strict: bool) -> Mask | None:
        """smaller <= larger, or < if `strict`; |x| <= larger is x <= larger and -x <= larger."""
        bound = self.linear(larger)
        if bound is None:
            return None
        if strict:  # of integers
            bound = bound + Linear(0, torch.tensor(-1))
        smaller = plain(smaller)
        if isinstance(smaller, Value) and smaller.operation is aten.abs:
            inner = self.linear(smaller.args[0])
            if inner is None:
                return None
            one, other = _positive(bound - inner), _positive(bound + inner)
            return None if one is None or other is None else both(one, other)
        other_side = self.linear(smaller)
        return None if other_side is None else _positive(bound - other_side)

    def _equal(self, one: Any, other: Any) -> Mask | None:
        lines = self.linear(one), self.linear(other)
        if lines[0] is not None and lines[1] is not None:
            difference = lines[0] - lines[1]
            least, most = _positive(difference), _positive(difference.times(-1))
            return None if least is None or most is None else both(least, most)
        one, other = plain(one), plain(other)
        if not all(_is_integer(each) for each in (one, other)):
            return None
        if "kv" in one.axes:
            one, other = other, one
        if "kv" in one.axes or "q" in other.axes or "q" not in one.axes:
            return None
        return Mask(documents=(self._table(one)[..., 0], self._table(other)[:, :, 0]))

    def linear(self, value: Any) -> Linear | None:
        """`value` as a linear function of the index of the key, if it is one of integers."""
        value = plain(value)
        if type(value) is int:
            return Linear(0, torch.tensor(value))
        if not _is_integer(value):
            return None
        if value is self._key:
            return Linear(1, torch.tensor(0))
        if "kv" not in value.axes:
            return Linear(0, self._table(value).long())
        operation, args = value.operation, value.args
        if operation is aten.neg:
            inner = self.linear(args[0])
            return None if inner is None else inner.times(-1)
        if operation not in (aten.add, aten.sub, aten.rsub, aten.mul):
            return None
        one, other = self.linear(args[0]), self.linear(args[1])
        if one is None or other is None or len(args) > 2 or value.kwargs:  # an alpha
            return None
        if operation is aten.add:
            return one + other
        if operation is aten.sub:
            return one - other
        if operation is aten.rsub:
            return other - one
        if one.factor == 0:
            one, other = other, one
        number = other.rest
        return one.times(int(number)) if other.factor == 0 and number.dim() == 0 else None

    def _table(self, value: Value) -> Tensor:
        with torch.no_grad():
            return tabulate(self._program, value, self._lengths)


def _is_integer(value: Any) -> bool:
    """Whether it is an integer scalar that does not depend on a score."""
    return (
        isinstance(value, Value)
        and value.dtype in INTEGERS
        and value.shape == ()
        and "score" not in value.axes
    )


def _positive(line: Linear) -> Mask | None:
    """Where line >= 0; None if keys outside a range are."""
    rest = line.rest
    if rest.dim() == 4:
        rest = rest.squeeze(-1)
    if line.factor == 1:
        return Mask(low=-rest)
    if line.factor == -1:
        return Mask(high=rest)
    return None
