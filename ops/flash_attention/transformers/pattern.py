"""Which keys each query attends, as a few numbers instead of a matrix of L x S elements."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

__all__ = ["Pattern", "PatternMask"]


@dataclass(frozen=True, eq=False)
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
    """

    batch: int
    queries: int
    keys: int
    start: int = 0
    window: tuple[int, int] = (-1, -1)
    padding: Tensor | None = None
    sequences: Tensor | None = None

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

    @functools.cached_property
    def reachable(self) -> int:
        """The number of keys up to the last one that a query attends; the others are not read."""
        right = self.window[1]
        return self.keys if right < 0 else min(self.keys, self.start + self.queries + right)

    @functools.cached_property
    def position_options(self) -> dict[str, Any]:
        """The options of `attention` that give causality and window over `reachable` keys."""
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

    @functools.cached_property
    def key_mask(self) -> Tensor | None:
        """bool [B, 1, 1, reachable], True at a token, or None if no reachable key is padding."""
        if self.padding is None:
            return None
        padding = self.padding[:, : self.reachable]
        return None if padding.all() else padding[:, None, None, :]

    @functools.cached_property
    def offsets(self) -> Tensor:
        """int64 [sequences + 1]: where each packed sequence begins among the B * L rows."""
        assert self.sequences is not None
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

    def elements(self) -> Tensor:
        if self.dense is None:
            attends = self.pattern.dense()
            self.dense = torch.zeros(attends.shape, dtype=self.dtype)
            self.dense.masked_fill_(~attends, torch.finfo(self.dtype).min)
        return self.dense


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
        return self.contents.pattern if self.contents.dense is None else None

    def elements(self) -> Tensor:
        """[B, 1, L, S], to be added to the scores."""
        return self.contents.elements()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PatternMask({self.pattern or self.elements()})"

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

        def with_elements(mask: PatternMask) -> Tensor:
            if mask.pattern is not None:
                warnings.warn(
                    f"flash_attention.transformers: expected the model to pass its attention mask "
                    f"on, but it calls {operator}; the mask gets {list(mask.shape)} elements. If "
                    "the model computes attention itself, this package does not",
                    stacklevel=4,
                )
            return mask.elements()

        arguments, options = _pytree.tree_map_only(
            PatternMask, with_elements, (arguments, options or {})
        )
        return operator(*arguments, **options)
