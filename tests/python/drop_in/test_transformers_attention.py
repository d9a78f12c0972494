"""The attention function for transformers, and its masks without elements.

The package transformers is not needed here; tests/python/originals compares its models.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from flash_attention import dropout_mask, standard_attention
from flash_attention.transformers import register
from flash_attention.transformers.forward import attention_forward
from flash_attention.transformers.pattern import Pattern, PatternMask
from torch import Tensor, nn

from support.tolerances import CLOSE

# The options are the operator's, which every instruction set has tests for.
pytestmark = pytest.mark.once

HEADS, KEY_HEADS, DIM = 4, 2, 8


def tokens(*rows: str) -> Tensor:
    """`"0011"`: a row that begins with two keys of padding."""
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def numbers(*rows: str) -> Tensor:
    return torch.tensor([[int(digit) for digit in row] for row in rows])


LEFT = tokens("111111111", "000111111")
RIGHT = tokens("111111000", "111111111")
PACKED = numbers("001112222", "000000011")

PATTERNS = {
    "everything": Pattern(2, 5, 9),
    "padding": Pattern(2, 5, 9, padding=LEFT),
    "only tokens": Pattern(2, 5, 9, padding=torch.ones(2, 9, dtype=torch.bool)),
    "causal": Pattern(2, 9, 9, window=(-1, 0)),
    "causal, padding": Pattern(2, 9, 9, window=(-1, 0), padding=LEFT),
    "last queries": Pattern(2, 4, 9, start=5, window=(-1, 0)),
    "prefill of a static cache": Pattern(2, 5, 9, window=(-1, 0), padding=RIGHT),
    "second part of a prompt": Pattern(2, 3, 9, start=2, window=(-1, 0)),
    "past the keys": Pattern(2, 4, 9, start=7, window=(-1, 0)),
    "decode": Pattern(2, 1, 9, start=8, window=(-1, 0)),
    "decode in a static cache": Pattern(2, 1, 9, start=3, window=(-1, 0), padding=LEFT),
    "window": Pattern(2, 9, 9, window=(2, 0)),
    "window of one key": Pattern(2, 9, 9, window=(0, 0)),
    "window over everything": Pattern(2, 9, 9, window=(20, 0)),
    "window, last queries": Pattern(2, 4, 9, start=5, window=(3, 0), padding=LEFT),
    "window in a static cache": Pattern(2, 3, 9, start=3, window=(2, 0), padding=RIGHT),
    "window, decode": Pattern(2, 1, 9, start=8, window=(4, 0)),
    "symmetric window": Pattern(2, 9, 9, window=(2, 2), padding=RIGHT),
    "window of two sides, from the third key": Pattern(2, 4, 9, start=2, window=(2, 1)),
    "packed": Pattern(2, 9, 9, window=(-1, 0), sequences=PACKED),
    "packed, window": Pattern(2, 9, 9, window=(1, 0), sequences=PACKED),
    "packed, both sides": Pattern(2, 9, 9, sequences=PACKED),
}


def attends(pattern: Pattern, row: int, query: int, key: int) -> bool:
    """The definition of a pattern."""
    position, (left, right) = pattern.start + query, pattern.window
    if (left >= 0 and key < position - left) or (right >= 0 and key > position + right):
        return False
    if pattern.padding is not None and not pattern.padding[row, key]:
        return False
    numbers = pattern.sequences
    return numbers is None or bool(numbers[row, query] == numbers[row, key])


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Leaves, in the layout in which models have them."""

    def leaf(heads: int, length: int) -> Tensor:
        return torch.randn(2, length, heads, DIM, dtype=dtype).transpose(1, 2).requires_grad_()

    return {
        "query": leaf(HEADS, queries),
        "key": leaf(KEY_HEADS, keys),
        "value": leaf(KEY_HEADS, keys),
        "sinks": torch.randn(HEADS, dtype=dtype, requires_grad=True),
        "position_bias": torch.randn(1, HEADS, queries, keys, dtype=dtype, requires_grad=True),
    }


def call(leaves: dict[str, Tensor], mask: Tensor | None, **options: Any) -> Tensor:
    module = options.pop("module", nn.Module())
    tensors = [leaves[name] for name in ("query", "key", "value")]
    return attention_forward(module, *tensors, mask, **options)[0]


def assert_same(
    found: Tensor, expected: Tensor, leaves: dict[str, Tensor], dtype: torch.dtype = torch.float64
) -> None:
    """Output, [B, L, H, D] against [B, H, L, D], and the gradients of all leaves."""
    expected = expected.transpose(1, 2)
    close = {"rtol": 0, "atol": CLOSE[dtype]}
    torch.testing.assert_close(found, expected, **close)
    weight = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((out * weight).sum(), list(leaves.values()), allow_unused=True)
        for out in (found, expected)
    ]
    assert any(gradient is not None for gradient in gradients[0])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **close)


@pytest.mark.parametrize("name", PATTERNS)
def test_elements_of_a_pattern(name: str) -> None:
    pattern = PATTERNS[name]
    expected = [
        [[attends(pattern, b, i, j) for j in range(pattern.keys)] for i in range(pattern.queries)]
        for b in range(pattern.batch)
    ]
    assert torch.equal(pattern.dense(), torch.tensor(expected).unsqueeze(1))


@pytest.mark.parametrize("options", [{}, {"scaling": 0.5, "softcap": 3.0, "s_aux": True}])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_gives_what_its_elements_give(name: str, options: dict[str, Any]) -> None:
    pattern = PATTERNS[name]
    leaves = inputs(pattern.queries, pattern.keys)
    sinks = leaves["sinks"] if "s_aux" in options else None
    found = call(leaves, PatternMask(pattern), **options | {"s_aux": sinks})
    expected = standard_attention(
        *(leaves[name] for name in ("query", "key", "value")),
        bias=pattern.dense(),
        scale=options.get("scaling"),
        softcap=options.get("softcap", 0.0),
        sinks=sinks,
    )
    assert found.is_contiguous()
    assert_same(found, expected, leaves)


@pytest.mark.parametrize("name", [name for name, p in PATTERNS.items() if p.sequences is None])
def test_a_position_bias_is_added_and_has_its_gradient(name: str) -> None:
    pattern = PATTERNS[name]
    leaves = inputs(pattern.queries, pattern.keys)
    bias = leaves["position_bias"]
    found = call(leaves, PatternMask(pattern), position_bias=bias)
    expected = standard_attention(
        *(leaves[name] for name in ("query", "key", "value")),
        bias=bias.masked_fill(~pattern.dense(), -torch.inf),
    )
    assert_same(found, expected, leaves)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("floating", [False, True])
def test_a_mask_with_elements_is_complete(floating: bool, with_bias: bool) -> None:
    """Nothing is added to it, whatever the module says."""
    leaves = inputs(5, 9)
    mask = torch.rand(2, 1, 5, 9) < 0.7
    mask[..., 0] = True
    added = torch.zeros(mask.shape).double().masked_fill(~mask, torch.finfo(torch.float64).min)
    options = {"position_bias": leaves["position_bias"]} if with_bias else {}
    module = nn.Module()
    module.is_causal = True
    found = call(leaves, added if floating else mask, module=module, sliding_window=2, **options)
    bias = leaves["position_bias"] if with_bias else torch.zeros(1, 1, 1, 1).double()
    tensors = [leaves[name] for name in ("query", "key", "value")]
    expected = standard_attention(*tensors, bias=bias.masked_fill(~mask, -torch.inf))
    assert_same(found, expected, leaves)


@pytest.mark.parametrize("argument", [None, False, True])
@pytest.mark.parametrize("attribute", [None, False, True])
def test_without_a_mask_the_module_says_whether_it_is_causal(
    argument: bool | None, attribute: bool | None
) -> None:
    module = nn.Module()
    if attribute is not None:
        module.is_causal = attribute
    causal = argument if argument is not None else attribute is not False
    leaves = inputs(9, 9)
    found = call(leaves, None, module=module, is_causal=argument)
    tensors = [leaves[name] for name in ("query", "key", "value")]
    assert_same(found, standard_attention(*tensors, causal=causal), leaves)


def test_without_a_mask_a_causal_call_has_the_window_of_its_argument() -> None:
    leaves = inputs(9, 9)
    tensors = [leaves[name] for name in ("query", "key", "value")]
    expected = standard_attention(*tensors, causal=True, window=(2, 0))
    assert_same(call(leaves, None, sliding_window=3), expected, leaves)


def test_one_query_without_a_mask_attends_every_key() -> None:
    leaves = inputs(1, 9)
    tensors = [leaves[name] for name in ("query", "key", "value")]
    assert_same(call(leaves, None, is_causal=True), standard_attention(*tensors), leaves)


@pytest.mark.parametrize("mask", [None, PatternMask(Pattern(2, 9, 9, window=(-1, 0)))])
def test_offsets_of_packed_sequences(mask: Tensor | None) -> None:
    leaves = inputs(9, 9)
    offsets = torch.tensor([0, 2, 5, 9, 16, 18], dtype=torch.int32)
    found = call(leaves, mask, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, max_length_q=7)
    tensors = [leaves[name] for name in ("query", "key", "value")]
    bias = Pattern(2, 9, 9, window=(-1, 0), sequences=PACKED).dense()
    assert_same(found, standard_attention(*tensors, bias=bias), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinks_and_bias_of_another_dtype(dtype: torch.dtype) -> None:
    leaves = {name: x.detach() for name, x in inputs(5, 9, dtype).items()}
    sinks, bias = leaves["sinks"], leaves["position_bias"]
    mask = PatternMask(Pattern(2, 5, 9, padding=LEFT))
    found = call(leaves, mask, s_aux=sinks, position_bias=bias)
    assert found.dtype == dtype
    for wider in (torch.float32, torch.float64):
        again = call(leaves, mask, s_aux=sinks.to(wider), position_bias=bias.to(wider))
        torch.testing.assert_close(again, found, rtol=0, atol=CLOSE[dtype])


def test_dropout_is_that_of_the_argument() -> None:
    leaves = inputs(9, 9)
    torch.manual_seed(5)
    found = call(leaves, PatternMask(PATTERNS["causal"]), dropout=0.4)
    torch.manual_seed(5)
    tensors = [leaves[name] for name in ("query", "key", "value")]
    assert_same(found, standard_attention(*tensors, causal=True, dropout=0.4), leaves)
    torch.manual_seed(5)
    assert not dropout_mask(2, HEADS, 9, 9, dropout=0.4).all()


WARNING = "expected the model to pass its attention mask on, but it calls aten"


def test_a_mask_has_no_elements_until_an_operation_asks() -> None:
    pattern = PATTERNS["window in a static cache"]
    mask = PatternMask(pattern, torch.bfloat16)
    assert mask.shape == (2, 1, 3, 9) and mask.dim() == 4
    assert mask.dtype == torch.bfloat16 and mask.device.type == "cpu"
    assert mask.detach().pattern is pattern
    assert "window=(2, 0)" in repr(mask)
    assert mask.pattern is pattern

    with pytest.warns(UserWarning, match=rf"{WARNING}.*needs the elements"):
        part = mask[:, :, :, 1:]
    lowest = torch.finfo(torch.bfloat16).min
    expected = torch.zeros(2, 1, 3, 9).bfloat16().masked_fill(~pattern.dense(), lowest)
    assert type(part) is Tensor
    assert torch.equal(part, expected[:, :, :, 1:])
    assert mask.pattern is None
    assert "tensor(" in repr(mask)
    scores = torch.randn(2, 4, 3, 9).bfloat16()
    assert torch.equal(scores + mask, scores + expected)


def test_what_an_operation_writes_into_a_mask_counts() -> None:
    leaves = inputs(9, 9)
    mask = PatternMask(PATTERNS["causal"])
    same = mask.detach()
    with pytest.warns(UserWarning, match=WARNING):
        mask[:, :, 4:, 1] = -torch.inf
    expected = PATTERNS["causal"].dense()
    expected[:, :, 4:, 1] = False
    tensors = [leaves[name] for name in ("query", "key", "value")]
    for written in (mask, same):
        assert_same(call(leaves, written), standard_attention(*tensors, bias=expected), leaves)


def test_a_mask_goes_through_a_checkpoint() -> None:
    leaves = inputs(9, 9)
    mask = PatternMask(PATTERNS["window"])
    found = torch.utils.checkpoint.checkpoint(call, leaves, mask, use_reentrant=False)
    assert mask.pattern is not None
    tensors = [leaves[name] for name in ("query", "key", "value")]
    assert_same(found, standard_attention(*tensors, bias=PATTERNS["window"].dense()), leaves)


@pytest.mark.parametrize(
    ("mask", "options", "error", "text"),
    [
        (None, {"output_attentions": True}, NotImplementedError, "output_attentions.*eager"),
        (None, {"head_mask": torch.ones(HEADS)}, NotImplementedError, "expected no head_mask"),
        (None, {}, ValueError, "mask for 5 causal queries over 9 keys"),
        (None, {"is_causal": False, "sliding_window": 3}, ValueError, "sliding_window=3"),
        (PatternMask(Pattern(2, 5, 8)), {}, ValueError, "5 queries and 9 keys.*of 5 and 8"),
        (PatternMask(Pattern(2, 4, 9)), {}, ValueError, "5 queries and 9 keys.*of 4 and 9"),
        (LEFT, {}, ValueError, r"mask \[batch, heads, queries, keys\].*got shape \[2, 9\]"),
        (torch.ones(2, 1, 5, 12, dtype=torch.bool), {}, ValueError, r"of 9 keys.*\[2, 1, 5, 12\]"),
        (torch.ones(2, 1, 4, 9, dtype=torch.bool), {}, ValueError, "bias to broadcast"),
        (torch.ones(2, 1, 5, 9, dtype=torch.long), {}, TypeError, "bias of dtype bool"),
        (None, {"cu_seq_lens_q": torch.tensor([0, 10])}, ValueError, "cu_seq_lens_k, got one"),
    ],
)
def test_what_is_not_supported_is_refused(
    mask: Tensor | None, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(inputs(5, 9), mask, **options)


@pytest.mark.parametrize(
    ("mask", "options", "error", "text"),
    [
        (
            PatternMask(PATTERNS["packed"]),
            {"position_bias": torch.ones(1)},
            NotImplementedError,
            "packed",
        ),
        (
            PatternMask(Pattern(2, 9, 9, padding=LEFT)),
            {"offsets": True},
            NotImplementedError,
            "packed",
        ),
        (
            torch.ones(2, 1, 9, 9, dtype=torch.bool),
            {"offsets": True},
            NotImplementedError,
            "packed",
        ),
        (PatternMask(PATTERNS["packed"]), {"offsets": True}, ValueError, "position_ids and cu_seq"),
    ],
)
def test_contradictions_about_packed_sequences_are_refused(
    mask: Tensor, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    if options.pop("offsets", False):
        options = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, 9, 18]))
    with pytest.raises(error, match=text):
        call(inputs(9, 9), mask, **options)


def test_register_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'transformers==5.24"):
        register()
