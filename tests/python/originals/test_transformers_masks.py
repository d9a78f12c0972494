"""The mask function gives patterns for the masks of transformers, and elements for any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_attention.transformers import NAME, masks, register
from flash_attention.transformers.pattern import PatternMask
from torch import Tensor
from transformers import LlamaConfig, StaticCache, masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from support.transformers_models import left_padding

pytestmark = pytest.mark.once

register()
LENGTH = 13
CAUSAL = masking_utils.causal_mask_function
PACKED = torch.tensor([[0] * 4 + [1] + [2] * 8, [0] * 13])

KNOWN = {
    "causal": CAUSAL,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(4),
    "symmetric window": masking_utils.sliding_window_bidirectional_mask_function(3),
    "two windows": masking_utils.and_masks(
        masking_utils.sliding_window_overlay(4),
        masking_utils.sliding_window_causal_mask_function(6),
    ),
}
OTHER = {
    "chunks": masking_utils.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.long)),
    "union": masking_utils.or_masks(CAUSAL, masking_utils.sliding_window_overlay(3)),
    "blocks": masking_utils.or_masks(CAUSAL, masking_utils.blockwise_overlay(PACKED)),
    "one of our own": lambda batch, head, query, key: (query + key) % 3 != 1,
    "positions without sequences": masking_utils.remap_positions_for_packed_sequence(
        CAUSAL, torch.arange(LENGTH).expand(2, -1)
    ),
    "positions of other sequences": masking_utils.and_masks(
        masking_utils.remap_positions_for_packed_sequence(CAUSAL, 2 * PACKED),
        masking_utils.packed_sequence_mask_function(PACKED),
    ),
    "packed twice": masking_utils.and_masks(
        masking_utils.packed_sequence_mask_function(PACKED),
        masking_utils.packed_sequence_mask_function(PACKED.flip(0)),
    ),
}
PLACES = {
    "whole": {"q_length": LENGTH},
    "last queries": {"q_length": 4, "q_offset": 9},
    "a cache with room for more": {"q_length": 4, "q_offset": 5},
    "an offset that is a tensor": {"q_length": 4, "q_offset": torch.tensor(5)},
    "a cache that has dropped keys": {
        "q_length": 3,
        "q_offset": 10,
        "kv_offset": 6,
        "kv_length": 7,
    },
}


def calls(place: dict[str, Any], function: Callable[..., Tensor], padding: Tensor | None) -> Any:
    return {
        "batch_size": 2,
        "kv_length": LENGTH,
        "mask_function": function,
        "attention_mask": padding,
        "dtype": torch.bfloat16,
        "device": "cpu",
    } | place


def padding_of(kind: str) -> Tensor | None:
    """A mask as models pass it: of fewer positions than a static cache has room for."""
    mask = left_padding(LENGTH).bool()
    return {"none": None, "tokens": mask | True, "left": mask, "short": mask[:, :9]}[kind]


@pytest.mark.parametrize("padding", ["none", "tokens", "left", "short"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", KNOWN)
def test_known_masks_are_patterns(name: str, place: str, padding: str) -> None:
    call = calls(PLACES[place], KNOWN[name], padding_of(padding))
    mask = masks.attention_mask(**call)
    assert isinstance(mask, PatternMask) and mask.pattern is not None
    expected = masking_utils.eager_mask(**call)
    assert torch.equal(mask.elements(), expected)


@pytest.mark.parametrize("name", OTHER)
def test_other_masks_have_elements(name: str) -> None:
    call = calls(PLACES["whole"], OTHER[name], padding_of("left"))
    mask = masks.attention_mask(**call)
    assert type(mask) is Tensor
    assert torch.equal(mask, masking_utils.eager_mask(**call))


@pytest.mark.parametrize("window", [None, 3])
def test_packed_sequences_of_position_ids_are_a_pattern(window: int | None) -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=4)
    create = masking_utils.create_causal_mask
    if window is not None:
        config.sliding_window = window
        create = masking_utils.create_sliding_window_causal_mask
    positions = torch.cat([torch.arange(n) for n in (4, 1, 8)]).expand(2, -1)
    found = []
    for name in (NAME, "eager"):
        config._attn_implementation = name
        found.append(create(config, torch.zeros(2, LENGTH, 32), None, None, positions))
    mask, expected = found
    assert isinstance(mask, PatternMask)
    assert mask.pattern.offsets.tolist() == [0, 4, 5, 13, 17, 18, 26]
    assert torch.equal(mask.elements(), expected)


def test_register_is_repeatable_and_gives_the_mask_function() -> None:
    assert register() == register() == NAME
    assert ALL_MASK_ATTENTION_FUNCTIONS[NAME] is masks.attention_mask
    assert "flash" not in NAME  # or transformers asks for a GPU


def test_a_mask_made_for_a_static_cache_passes_through_the_model() -> None:
    """`generate` makes it before the call, and the model must return it as it is."""
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    config._attn_implementation = NAME
    cache = StaticCache(config=config, max_cache_len=LENGTH)
    embeddings = torch.zeros(2, 5, 32)
    first = masking_utils.create_causal_mask(config, embeddings, left_padding(5), cache)
    assert isinstance(first, PatternMask)
    assert masking_utils.create_causal_mask(config, embeddings, first, cache) is first


@pytest.mark.parametrize("part", ["sliding_window_overlay", "and_masks"])
def test_register_refuses_masks_that_mean_something_else(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overlay(sliding_window: int) -> Callable[..., Tensor]:
        return lambda batch, head, query, key: key >= query - sliding_window

    def union(*functions: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return masking_utils.or_masks(*functions)

    changed = {"sliding_window_overlay": overlay, "and_masks": union}[part]
    monkeypatch.setattr(masking_utils, part, changed)
    masks._known.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="expected the masks of transformers 5.24"):
            register()
    finally:
        monkeypatch.undo()
        masks._known.cache_clear()
