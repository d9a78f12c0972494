"""The mask function: the pattern that a model asks for, or its elements if we do not know it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from flash_attention.transformers.pattern import Pattern, PatternMask

__all__ = ["attention_mask", "check_patterns"]

MaskFunction = Callable[..., Tensor]

_utils: Any = None


def _masking_utils() -> Any:
    """transformers.masking_utils, which is imported only when it is needed."""
    global _utils  # and no functools.cache, which torch.compile would not look into
    if _utils is None:
        _utils = importlib.import_module("transformers.masking_utils")
    return _utils


@functools.cache
def _known() -> dict[CodeType, str]:
    """The code of each mask function that is a part of a pattern.

    transformers makes a new function for each mask, from the same code.
    """
    utils, none = _masking_utils(), torch.zeros(1, 1)
    causal = utils.causal_mask_function
    functions = {
        "all of": utils.and_masks(causal),
        "causal": causal,
        "everything": utils.bidirectional_mask_function,
        "window": utils.sliding_window_overlay(1),
        "symmetric window": utils.sliding_window_bidirectional_overlay(1),
        "of positions": utils.remap_positions_for_packed_sequence(causal, none),
        "packed": utils.packed_sequence_mask_function(none),
    }
    return {function.__code__: name for name, function in functions.items()}


def _variables(function: Any) -> dict[str, Any]:
    """What a function has from the one that made it."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return dict(zip(function.__code__.co_freevars, cells, strict=True))


def _narrower(bound: int, other: int) -> int:
    """The smaller of two bounds of a window, of which -1 is none."""
    return max(bound, other) if min(bound, other) < 0 else min(bound, other)


class _Unknown(Exception):
    """A mask function that is not a part of a pattern."""


@dataclass
class _Parts:
    """Window, packed sequences and position ids of a mask function."""

    left: int = -1
    right: int = -1
    sequences: Tensor | None = None
    positions: Tensor | None = None

    def bound(self, left: int, right: int) -> None:
        """Intersects the window with another one; -1 is no bound."""
        self.left = _narrower(self.left, left)
        self.right = _narrower(self.right, right)

    def add(self, function: MaskFunction) -> None:
        """Intersects with `function`; raises _Unknown if it is not a part of a pattern."""
        code = getattr(function, "__code__", None)
        name = None if code is None else _known().get(code)
        if name is None:
            raise _Unknown
        variables = _variables(function)
        if name == "all of":
            for part in variables["mask_functions"]:
                self.add(part)
        elif name == "causal":
            self.bound(-1, 0)
        elif name in ("window", "symmetric window"):
            size = variables["sliding_window"]
            if not isinstance(size, int) or size < 1:
                raise _Unknown
            self.bound(*((size - 1, -1) if name == "window" else (size, size)))
        elif name == "of positions" and self.positions is None:
            self.positions = variables["position_ids"]
            self.add(variables["mask_function"])
        elif name == "packed" and self.sequences is None:
            self.sequences = variables["packed_sequence_mask"]
        elif name != "everything":
            raise _Unknown

    def fit(self, batch: int, queries: int, keys: int, start: int) -> bool:
        """Whether a `Pattern` says the same."""
        if self.sequences is None:
            return start >= 0 and self.positions is None
        # transformers looks for packed sequences only where there is no cache.
        if start != 0 or queries != keys or self.sequences.shape != (batch, keys):
            return False
        if self.positions is None:
            return True
        # Between positions that rise by 1, distances are those between rows.
        steps = self.positions.diff(dim=-1) == 1
        return bool((steps | (self.sequences.diff(dim=-1) != 0)).all())


def _padding(mask: Tensor | None, kv_offset: int, keys: int) -> Tensor | None:
    """bool [B, S] from a mask [B, length] over all keys so far, or None if no key is padding."""
    if mask is None:
        return None
    mask = mask.bool()[:, kv_offset : kv_offset + keys]
    if mask.size(1) < keys:  # a cache with room for more
        mask = torch.nn.functional.pad(mask, (0, keys - mask.size(1)))
    return None if mask.all() else mask


def _pattern(
    batch: int,
    queries: int,
    keys: int,
    q_offset: int,
    kv_offset: int,
    function: MaskFunction,
    mask: Tensor | None,
) -> Pattern | None:
    """The mask as a pattern, or None if it is not one."""
    parts = _Parts()
    try:
        parts.add(function)
    except _Unknown:
        return None
    start = q_offset - kv_offset
    if not parts.fit(batch, queries, keys, start):
        return None
    padding, window = _padding(mask, kv_offset, keys), (parts.left, parts.right)
    return Pattern(batch, queries, keys, start, window, padding, parts.sequences)


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction | None = None,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor:
    """A mask, as the `AttentionMaskInterface` of transformers asks for it.

    Args:
        batch_size, q_length, kv_length: B, L and S.
        q_offset, kv_offset: the positions of the first query and of the first key.
        mask_function: from (batch, head, query, key), of which the last two are positions, to True
            where the query attends the key; None means causal.
        attention_mask: [B, length], 1 at a token and 0 at padding, of all positions so far.
        dtype: of the scores.
        use_vmap: `mask_function` takes one element at a time.
        device: where the model computes.
        others: for masks of other kinds.

    Returns:
        A `PatternMask` if the mask is an intersection of causality, windows, packed sequences and
        padding; otherwise [B, 1, L, S], to be added to the scores, as with "eager".
    """
    utils = _masking_utils()
    if mask_function is None:
        mask_function = utils.causal_mask_function
    if torch.device(device).type == "cpu" and not utils.is_tracing(attention_mask):
        sizes = (batch_size, q_length, kv_length, int(q_offset), int(kv_offset))
        pattern = _pattern(*sizes, mask_function, attention_mask)
        if pattern is not None:
            return PatternMask(pattern, dtype)
    return utils.eager_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        dtype=dtype,
        use_vmap=use_vmap,
        device=device,
    )


def check_patterns() -> None:
    """Raises RuntimeError if a mask function of the installed transformers is not what we know."""
    utils = _masking_utils()
    padding = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    numbers = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0] * 7])
    positions = torch.tensor([[0, 1, 0, 1, 2, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
    window = utils.sliding_window_causal_mask_function(3)
    packed = utils.packed_sequence_mask_function(numbers)
    functions = {
        "causal": utils.causal_mask_function,
        "bidirectional": utils.bidirectional_mask_function,
        "windowed": window,
        "symmetrically windowed": utils.sliding_window_bidirectional_mask_function(2),
        "packed": utils.and_masks(
            utils.remap_positions_for_packed_sequence(window, positions), packed
        ),
    }
    for name, function in functions.items():
        call = {"batch_size": 2, "kv_length": 7, "mask_function": function, "device": "cpu"}
        call |= {"q_length": 7} if name == "packed" else {"q_length": 4, "q_offset": 2}
        call["attention_mask"] = padding
        mask = attention_mask(**call)
        expected = utils.eager_mask(**call)
        if not isinstance(mask, PatternMask) or not torch.equal(mask.elements(), expected):
            raise RuntimeError(
                "flash_attention.transformers.register: expected the masks of transformers 5.24, "
                f"got another {name} one; install that version"
            )
