"""Which keys each query attends, as a few numbers instead of a matrix of L x S elements."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

__all__ = ["Pattern", "PatternMask"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """A causal, windowed, padded or packed mask.

    Attributes:
        batch, queries, keys: B, L and S.
        start: the position of the first query, counted from the first key; the others follow it.
        window: (left, right): a query at position p attends keys p - left ... p + right; -1 means
            no bound on that side.
        padding: bool [B, S], True at a token; None means that every key is one.
        sequences: int [B, L], not decreasing, where S = L: a query attends keys of its own number,
            for packed sequences. None means one sequence in each row.

    What follows from these is computed with them, because a compiled model may be what reads it:
        reachable: the number of keys up to the last one that a query attends; the others are not
            read.
        position_options: the options of `attention` that give causality and window over them.
        key_mask: bool [B, 1, 1, reachable], True at a token, or None if none of them is padding.
        offsets: int64 [N + 1], where each of N packed sequences begins among the B * L rows, or
            None without `sequences`.
    """

    batch: int
    queries: int
    keys: int
    start: int = 0
    window: tuple[int, int] = (-1, -1)
    padding: Tensor | None = None
    sequences: Tensor | None = None
    reachable: int = dataclasses.field(init=False, repr=False)
    position_options: dict[str, Any] = dataclasses.field(init=False, repr=False)
    key_mask: Tensor | None = dataclasses.field(init=False, repr=False)
    offsets: Tensor | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("reachable", "position_options", "key_mask", "offsets"):
            object.__setattr__(self, name, getattr(self, f"_{name}")())

    def dense(self) -> Tensor:
        """The mask, bool [B, 1, L, S], True where the query attends the key."""
        positions = torch.arange(self.start, self.start + self.queries).unsqueeze(1)
        distance = torch.arange(self.keys) - positions
        left, right = self.window
        mask = torch.ones(self.queries, self.keys, dtype=torch.bool)
        if left >= 0:
            mask &= distance >= -left
        if right >= 0:
            mask &= distance <= right
        mask = mask.repeat(self.batch, 1, 1, 1)
        if self.padding is not None:
            mask &= self.padding[:, None, None, :]
        if self.sequences is not None:
            mask &= self.sequences[:, None, :, None] == self.sequences[:, None, None, :]
        return mask

    def rows(self, begin: int, end: int) -> Pattern | None:
        """The pattern of the queries `begin` ... `end - 1`, or None if it is not one."""
        if self.sequences is not None:
            return None
        return dataclasses.replace(self, queries=end - begin, start=self.start + begin)

    def _reachable(self) -> int:
        right = self.window[1]
        return self.keys if right < 0 else min(self.keys, self.start + self.queries + right)

    def _position_options(self) -> dict[str, Any]:
        left, right = self.window
        if left >= self.start + self.queries - 1:
            left = -1  # the last query attends the first key
        if self.start + right >= self.reachable - 1:
            right = -1  # the first query attends the last key
        options: dict[str, Any] = {"causal": right == 0, "window": (left, right)}
        bounded = (left, right) != (-1, -1)
        if bounded and self.start + self.queries != self.reachable:
            options["query_positions"] = torch.arange(self.start, self.start + self.queries)
        return options

    def _key_mask(self) -> Tensor | None:
        if self.padding is None:
            return None
        padding = self.padding[:, : self.reachable]
        return None if padding.all() else padding[:, None, None, :]

    def _offsets(self) -> Tensor | None:
        if self.sequences is None:
            return None
        begins = torch.ones(self.batch, self.queries, dtype=torch.bool)
        begins[:, 1:] = self.sequences.diff(dim=-1) != 0
        starts = begins.flatten().nonzero().flatten()
        return torch.nn.functional.pad(starts, (0, 1), value=self.batch * self.queries)


class _Contents:
    """The pattern of a mask, or its elements once an operation has asked for them."""

    def __init__(self, pattern: Pattern, dtype: torch.dtype) -> None:
        self.pattern = pattern
        self.dtype = dtype
        self.dense: Tensor | None = None

    @property
    def has_elements(self) -> bool:
        return self.dense is not None

    def elements(self) -> Tensor:
        if self.dense is None:
            attends = self.pattern.dense()
            self.dense = torch.zeros(attends.shape, dtype=self.dtype)
            self.dense.masked_fill_(~attends, torch.finfo(self.dtype).min)
        return self.dense


class _Rows(_Contents):
    """Some rows of a mask: a view of its elements, once an operation has asked for those of any.

    `dense` stays None.
    """

    def __init__(self, mask: _Contents, pattern: Pattern, begin: int) -> None:
        super().__init__(pattern, mask.dtype)
        self.mask = mask
        self.begin = begin

    @property
    def has_elements(self) -> bool:
        return self.mask.has_elements

    def elements(self) -> Tensor:
        return self.mask.elements().narrow(2, self.begin, self.pattern.queries)


class PatternMask(Tensor):
    """A mask [B, 1, L, S] that has no elements until an operation asks for them.

    A model passes it on from the mask function to the attention function, which reads `pattern`.
    An operation of torch gets the elements, with a warning: floating, 0 where the query attends
    the key and the lowest number elsewhere, as in the masks of "eager", so that a model that
    computes attention itself is right. From then on they are the mask: the operation may have
    changed them, or have returned a view through which they can be changed.
    """

    contents: _Contents
    # Results of operations are ordinary tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, contents: Pattern | _Contents, dtype: torch.dtype = torch.float32
    ) -> PatternMask:
        if isinstance(contents, Pattern):
            contents = _Contents(contents, dtype)
        pattern = contents.pattern
        mask = torch.Tensor._make_wrapper_subclass(
            cls,
            (pattern.batch, 1, pattern.queries, pattern.keys),
            dtype=contents.dtype,
            device=torch.device("cpu"),
        )
        mask.contents = contents
        return mask

    @property
    def pattern(self) -> Pattern | None:
        """The pattern, or None once `elements` have replaced it."""
        return None if self.contents.has_elements else self.contents.pattern

    def elements(self) -> Tensor:
        """[B, 1, L, S], to be added to the scores."""
        return self.contents.elements()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PatternMask({self.pattern or self.elements()})"

    def rows(
        self, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
    ) -> PatternMask | None:
        """What `aten.slice` returns, or None if it is not a pattern of some of the queries."""
        if self.pattern is None or dim not in (2, -2) or step != 1:
            return None
        begin, end, _ = slice(start, end).indices(self.pattern.queries)
        pattern = self.pattern.rows(begin, max(begin, end))
        if pattern is None:
            return None
        return PatternMask(_Rows(self.contents, pattern, begin))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        operator: Any,
        types: tuple[type, ...],
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        if operator in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(arguments[0].contents)
        if operator is torch.ops.aten.slice.Tensor:  # of the queries whose logits are kept
            rows = arguments[0].rows(*arguments[1:], **(options or {}))
            if rows is not None:
                return rows

        def with_elements(mask: PatternMask) -> Tensor:
            if mask.pattern is not None:
                warnings.warn(
                    # The same text for every token that is generated: it is shown once.
                    "flash_attention.transformers: expected the model to pass its attention mask "
                    f"on, but it calls {operator}, which needs the elements of the mask. If the "
                    "model computes attention itself, this package does not",
                    stacklevel=4,
                )
            return mask.elements()

        arguments, options = _pytree.tree_map_only(
            PatternMask, with_elements, (arguments, options or {})
        )
        return operator(*arguments, **options)
