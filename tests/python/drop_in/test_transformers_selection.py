"""Keys and sinks of each query, and masks of some of the queries."""

from __future__ import annotations

import warnings

import pytest
import torch
from flash_attention import standard_attention
from flash_attention.transformers.pattern import Pattern, PatternMask
from torch import Tensor

from drop_in.test_transformers_attention import (
    HEADS,
    PATTERNS,
    assert_same,
    call,
    inputs,
)
from support.tolerances import CLOSE

pytestmark = pytest.mark.once

ONE_SEQUENCE = [name for name, pattern in PATTERNS.items() if pattern.sequences is None]


def lowest(mask: Tensor) -> Tensor:
    """A mask as with "eager": the lowest number where a query does not attend."""
    return torch.zeros(mask.shape).double().masked_fill(~mask, torch.finfo(torch.float64).min)


@pytest.mark.parametrize("kind", ["pattern", "bool", "floating"])
def test_a_query_attends_those_keys_of_its_indices_that_the_mask_has(kind: str) -> None:
    pattern = PATTERNS["causal, padding"]
    leaves = inputs(9, 9)
    indices = torch.rand(2, 9, 9).argsort(dim=-1)[..., :4].int()
    dense = pattern.dense()
    mask = {"pattern": PatternMask(pattern), "bool": dense, "floating": lowest(dense)}[kind]
    selected = torch.zeros(2, 9, 9, dtype=torch.bool)
    for row in range(2):
        for query in range(9):
            selected[row, query, indices[row, query].long()] = True
    both = dense & selected[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = call(leaves, mask, indices=indices)
    tensors = [leaves[name] for name in ("query", "key", "value")]
    bias = both if kind == "bool" else lowest(both)
    assert_same(found, standard_attention(*tensors, bias=bias), leaves)


@pytest.mark.parametrize("name", ["causal, padding", "window, decode", "symmetric window"])
def test_each_query_has_its_sink(name: str) -> None:
    """Beside a mask and a position bias; with the gradient of the sinks."""
    pattern = PATTERNS[name]
    leaves = inputs(pattern.queries, pattern.keys)
    leaves["sinks"] = torch.randn(2, HEADS, pattern.queries, 1).double().requires_grad_()
    bias, sinks = leaves["position_bias"], leaves["sinks"]
    found = call(leaves, PatternMask(pattern), position_bias=bias, sinks=sinks)

    key, value = (leaves[name].repeat_interleave(2, dim=1) for name in ("key", "value"))
    scores = leaves["query"] @ key.mT / leaves["query"].size(-1) ** 0.5 + bias
    scores = scores.masked_fill(~pattern.dense(), -torch.inf)
    weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    assert_same(found, weights @ value, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinks_of_each_query_in_16_bits(dtype: torch.dtype) -> None:
    leaves = {name: x.detach() for name, x in inputs(9, 9, dtype).items()}
    sinks = torch.randn(2, HEADS, 9, 1, dtype=dtype)
    mask = PatternMask(PATTERNS["causal"])
    found = call(leaves, mask, sinks=sinks)
    exact = call({name: x.double() for name, x in leaves.items()}, mask, sinks=sinks.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("name", ONE_SEQUENCE)
@pytest.mark.parametrize("part", [slice(-1, None), slice(1, 3), slice(7, 3)], ids=str)
def test_some_queries_of_a_mask_are_a_pattern(name: str, part: slice) -> None:
    """Gemma 4 takes those whose logits it keeps."""
    pattern = PATTERNS[name]
    mask = PatternMask(pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = mask[:, :, part]
    assert isinstance(rows, PatternMask) and rows.pattern is not None
    assert mask.pattern is pattern
    expected = pattern.dense()[:, :, part]
    assert rows.shape == expected.shape
    assert torch.equal(rows.pattern.dense(), expected)


def test_some_queries_of_packed_sequences_have_elements() -> None:
    pattern = PATTERNS["packed"]
    with pytest.warns(UserWarning, match=r"calls aten\.slice"):
        rows = PatternMask(pattern)[:, :, 3:]
    assert type(rows) is Tensor
    assert torch.equal(rows == 0, pattern.dense()[:, :, 3:])


@pytest.mark.parametrize("through", ["rows", "mask"])
def test_rows_and_their_mask_share_elements(through: str) -> None:
    mask = PatternMask(PATTERNS["causal"])
    rows = mask[:, :, 4:]
    with pytest.warns(UserWarning, match=r"calls aten\."):
        if through == "rows":
            rows[..., 1] = -7.0
        else:
            mask[:, :, 4:, 1] = -7.0
    assert mask.pattern is None and rows.pattern is None
    expected = torch.zeros(2, 1, 9, 9)
    expected.masked_fill_(~PATTERNS["causal"].dense(), torch.finfo(torch.float32).min)
    expected[:, :, 4:, 1] = -7.0
    assert torch.equal(mask.elements(), expected)
    assert torch.equal(rows.elements(), expected[:, :, 4:])


def test_a_model_that_reads_a_mask_for_each_token_warns_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for keys in range(2, 9):
            PatternMask(Pattern(1, 1, keys, start=keys - 1, window=(-1, 0))) + 1.0
            PatternMask(Pattern(1, keys, keys))[:, 0]
    assert len(caught) == 2


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"block_indices": torch.zeros(1)}, NotImplementedError, "expected no block_indices"),
        (
            {"indices": torch.zeros(2, 9, 4).long()},
            ValueError,
            "expected a mask of 9 keys beside indices, got None",
        ),
        (
            {"indices": torch.zeros(2, 5, 4).long(), "mask": True},
            ValueError,
            r"indices \[2, 9, any\] of integers, got \[2, 5, 4\] of torch.int64",
        ),
        (
            {"indices": torch.zeros(2, 9, 4), "mask": True},
            ValueError,
            r"of integers, got \[2, 9, 4\] of torch.float32",
        ),
        (
            {"sinks": torch.zeros(2, 4, 9)},
            ValueError,
            r"expected sinks \[2, 4, 9, 1\], got \[2, 4, 9\]",
        ),
        ({"sinks": torch.zeros(2, 4, 9, 1), "packed": True}, NotImplementedError, "packed"),
    ],
)
def test_what_is_not_supported_is_refused(
    options: dict[str, Tensor], error: type[Exception], text: str
) -> None:
    mask = PatternMask(PATTERNS["causal"]) if options.pop("mask", None) else None
    if options.pop("packed", None):
        mask = PatternMask(PATTERNS["packed"])
    with pytest.raises(error, match=text):
        call(inputs(9, 9), mask, **options)
