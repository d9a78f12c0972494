"""KeyValueCache refuses invalid tensors and is unchanged after an error."""

from __future__ import annotations

from collections.abc import Callable

import flash_attention
import pytest
import torch

from support.forked import run_forked
from support.invalid_tensors import Arguments, tensor_changes, zeros

BATCH, HEADS, KEY_HEADS, QUERIES, WIDTH, VALUE_WIDTH = 3, 12, 6, 4, 5, 8


class Cache:
    """A partly filled cache, to call one method on."""

    def __init__(self) -> None:
        self.cache = flash_attention.KeyValueCache(
            BATCH, KEY_HEADS, 20, WIDTH, value_dim=VALUE_WIDTH, value_heads=KEY_HEADS
        )
        key, value = zeros(BATCH, KEY_HEADS, 6, WIDTH), zeros(BATCH, KEY_HEADS, 6, VALUE_WIDTH)
        self.cache.append(key, value)

    def call(self, method: str, arguments: Arguments) -> Exception | None:
        try:
            getattr(self.cache, method)(**arguments)
        except Exception as error:
            return error
        return None


def append_arguments() -> Arguments:
    return {
        "key": zeros(BATCH, KEY_HEADS, 4, WIDTH),
        "value": zeros(BATCH, KEY_HEADS, 4, VALUE_WIDTH),
        "counts": torch.tensor([4, 0, 2]),
    }


def attention_arguments() -> Arguments:
    return {
        "query": zeros(BATCH, HEADS, QUERIES, WIDTH),
        "counts": torch.tensor([4, 0, 2]),
        "bias": zeros(BATCH, HEADS, QUERIES, 6),
        "alibi_slopes": zeros(BATCH, HEADS),
        "sinks": zeros(BATCH, HEADS),
    }


BROADCASTS = {f"{name} drop" for name in ("bias", "alibi_slopes", "sinks")}
OMITTED = {f"{name} None" for name in ("bias", "alibi_slopes", "sinks", "counts")}
METHODS: dict[str, tuple[Callable[[], Arguments], set[str]]] = {
    "append": (append_arguments, {"counts None"}),
    "attention": (attention_arguments, BROADCASTS | OMITTED | {"bias bool"}),
}


def unexpected_outcomes(method: str) -> list[str]:
    found = []
    valid, allowed = METHODS[method][0](), METHODS[method][1]
    for name, change, value in tensor_changes(valid):
        cache = Cache()
        before = cache.cache.lengths
        error = cache.call(method, valid | {name: value})
        label = f"{name} {change}"
        if error is None and label not in allowed:
            found.append(f"{label}: accepted")
        if error is not None and label in allowed:
            found.append(f"{label}: {error}")
        if error is not None and not torch.equal(cache.cache.lengths, before):
            found.append(f"{label}: refused, but appended")
    return found


@pytest.mark.parametrize("method", METHODS)
def test_cache_refuses_invalid_tensors(method: str) -> None:
    assert Cache().call(method, METHODS[method][0]()) is None
    assert run_forked(lambda: unexpected_outcomes(method)) == []
