"""Every place that lists the options of attention agrees with the registered schema."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import flash_attention
import pytest
import torch

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[3]
INPUTS = {"query", "key", "value", "cu_seqlens_q", "cu_seqlens_k", "counts", "self"}
KERNEL_OPTIONS = {"block_size", "use_simd"}  # standard_attention has no kernels

# The functions that take options, and the options that they do not take.
FUNCTIONS: dict[str, tuple[Callable[..., object], set[str]]] = {
    "attention": (flash_attention.attention, set()),
    "attention_with_lse": (flash_attention.attention_with_lse, set()),
    "standard_attention": (flash_attention.standard_attention, KERNEL_OPTIONS),
    "varlen_attention": (flash_attention.varlen_attention, {"bias", "query_positions"}),
    "KeyValueCache.attention": (
        flash_attention.KeyValueCache.attention,
        {"causal", "query_positions", "dropout"} | KERNEL_OPTIONS,
    ),
}


def schema_defaults(operator: str) -> dict[str, object]:
    """The options of an operator, in order, with their defaults."""
    arguments = getattr(torch.ops.flash, operator).default._schema.arguments
    return {a.name: a.default_value for a in arguments if a.name not in INPUTS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_python_signature_has_the_options_of_the_schema(name: str) -> None:
    function, missing = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in INPUTS}
    expected = {n: d for n, d in schema_defaults("attention").items() if n not in missing}
    assert list(options.items()) == list(expected.items())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name in expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_describes_every_option(name: str) -> None:
    function, missing = FUNCTIONS[name]
    arguments = (function.__doc__ or "").partition("Args:")[2].partition("Returns:")[0]
    for option in schema_defaults("attention").keys() - missing:
        assert re.search(rf"\b{option}\b[^.]*:", arguments), option


@pytest.mark.parametrize(
    "operator", ["attention_with_lse", "_forward", "varlen_attention", "_varlen_forward"]
)
def test_operators_take_the_same_options(operator: str) -> None:
    assert list(schema_defaults(operator).items()) == list(schema_defaults("attention").items())


def test_standard_attention_takes_all_options_but_those_of_the_kernels() -> None:
    expected = {n: d for n, d in schema_defaults("attention").items() if n not in KERNEL_OPTIONS}
    assert list(schema_defaults("standard_attention").items()) == list(expected.items())


@pytest.mark.parametrize("operator", ["_backward", "_varlen_backward"])
def test_backward_takes_the_same_options_without_defaults(operator: str) -> None:
    arguments = getattr(torch.ops.flash, operator).default._schema.arguments
    options = list(schema_defaults("attention"))
    names = [a.name for a in arguments]
    first = names.index(options[0])
    assert names[first:] == [*options, "needed"]
    assert not any(a.has_default_value() for a in arguments)


def test_attention_options_of_cpp_are_those_of_the_schema() -> None:
    """The compiler finds an option that AttentionOptions lacks, but not one that it adds."""
    header = (ROOT / "ops/include/flash_attention/ops.h").read_text()
    struct = re.search(r"struct AttentionOptions \{(.*?)\n\};", header, re.DOTALL)
    assert struct is not None
    names = re.findall(r"TORCH_ARG\(.*, (\w+)\)", struct[1])
    assert names == list(schema_defaults("attention"))
