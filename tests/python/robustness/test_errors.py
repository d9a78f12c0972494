"""Invalid arguments: the exception type, and a message with what was expected and what was given.

One function checks the arguments for CPU and Meta tensors, so every case runs on both, and no case
depends on values, which Meta tensors do not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.once

B, H, L, S, D, DV = 2, 4, 5, 16, 8, 6


def tensor(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def valid_call() -> dict[str, Any]:
    return {
        "query": tensor(B, H, L, D),
        "key": tensor(B, H, S, D),
        "value": tensor(B, H, S, DV),
    }


@dataclass(frozen=True)
class Invalid:
    """Arguments that replace those of the valid call, and the expected error."""

    changes: dict[str, Any]
    error: type[Exception]
    fragments: tuple[str, ...]


def all_three(dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) for name, x in valid_call().items()}


INVALID: dict[str, Invalid] = {
    # Lengths of key and value: other implementations read past the end of the shorter one.
    "value-shorter": Invalid(
        {"value": tensor(B, H, 9, DV)}, ValueError, ("key", "value", "16", "9")
    ),
    "value-longer": Invalid(
        {"value": tensor(B, H, 17, DV)}, ValueError, ("key", "value", "16", "17")
    ),
    "value-much-longer": Invalid(
        {"value": tensor(1, 1, 1, 1).expand(B, H, 4_000_000, DV)}, ValueError, ("16", "4000000")
    ),
    "key-empty": Invalid({"key": tensor(B, H, 0, D)}, ValueError, ("0", "16")),
    "key-head-dim": Invalid({"key": tensor(B, H, S, 7)}, ValueError, ("query", "key", "8", "7")),
    "key-batch": Invalid({"key": tensor(3, H, S, D)}, ValueError, ("batch", "2", "3")),
    "value-batch": Invalid({"value": tensor(1, H, S, DV)}, ValueError, ("batch", "2", "1")),
    "key-heads": Invalid({"key": tensor(B, 3, S, D)}, ValueError, ("multiple", "4", "3")),
    "value-heads": Invalid({"value": tensor(B, 3, S, DV)}, ValueError, ("multiple", "4", "3")),
    "more-key-heads": Invalid({"key": tensor(B, 8, S, D)}, ValueError, ("multiple", "4", "8")),
    "no-key-heads": Invalid({"key": tensor(B, 0, S, D)}, ValueError, ("multiple", "4", "0")),
    "no-value-heads": Invalid({"value": tensor(B, 0, S, DV)}, ValueError, ("multiple", "4", "0")),
    "query-2d": Invalid({"query": tensor(L, D)}, ValueError, ("query", "[5, 8]")),
    "query-5d": Invalid({"query": tensor(1, B, H, L, D)}, ValueError, ("[1, 2, 4, 5, 8]",)),
    "query-scalar": Invalid({"query": tensor()}, ValueError, ("query", "[]")),
    "query-3d-key-4d": Invalid(
        {"query": tensor(B, L, D)}, ValueError, ("[2, 5, 8]", "[2, 4, 16, 8]")
    ),
    "value-3d": Invalid({"value": tensor(B, S, DV)}, ValueError, ("[2, 16, 6]",)),
    # Types.
    "key-float64": Invalid(
        {"key": tensor(B, H, S, D, dtype=torch.float64)}, TypeError, ("Float", "Double")
    ),
    "value-float64": Invalid(
        {"value": tensor(B, H, S, DV, dtype=torch.float64)}, TypeError, ("Float", "Double")
    ),
    "value-int": Invalid({"value": tensor(B, H, S, DV, dtype=torch.int64)}, TypeError, ("Long",)),
    "all-int64": Invalid(all_three(torch.int64), TypeError, ("Long",)),
    "all-int8": Invalid(all_three(torch.int8), TypeError, ("Char",)),
    "all-bool": Invalid(all_three(torch.bool), TypeError, ("Bool",)),
    "all-complex": Invalid(all_three(torch.complex64), TypeError, ("ComplexFloat",)),
    # Bias.
    "bias-keys": Invalid({"bias": tensor(L, 15)}, ValueError, ("bias", "[5, 15]", "[2, 4, 5, 16]")),
    "bias-queries": Invalid(
        {"bias": tensor(4, 1)}, ValueError, ("bias", "[4, 1]", "[2, 4, 5, 16]")
    ),
    "bias-heads": Invalid({"bias": tensor(2, 1, 1)}, ValueError, ("bias", "[2, 1, 1]")),
    "bias-batch": Invalid({"bias": tensor(3, 1, 1, S)}, ValueError, ("bias", "[3, 1, 1, 16]")),
    "bias-5d": Invalid({"bias": tensor(1, B, H, L, S)}, ValueError, ("bias", "[1, 2, 4, 5, 16]")),
    "bias-empty": Invalid({"bias": tensor(0)}, ValueError, ("bias", "[0]")),
    "mask-keys": Invalid(
        {"bias": tensor(L, 15, dtype=torch.bool)}, ValueError, ("bias", "[5, 15]")
    ),
    "bias-int64": Invalid({"bias": tensor(L, S, dtype=torch.int64)}, TypeError, ("bias", "Long")),
    "bias-uint8": Invalid({"bias": tensor(L, S, dtype=torch.uint8)}, TypeError, ("bias", "Byte")),
    "bias-float64": Invalid(
        {"bias": tensor(L, S, dtype=torch.float64)}, TypeError, ("bias", "Float", "Double")
    ),
    "bias-float16": Invalid(
        {"bias": tensor(L, S, dtype=torch.float16)}, TypeError, ("bias", "Half")
    ),
    # Positions.
    "positions-float": Invalid(
        {"query_positions": tensor(L)}, TypeError, ("query_positions", "Float")
    ),
    "positions-int32": Invalid(
        {"query_positions": tensor(L, dtype=torch.int32)}, TypeError, ("query_positions", "Int")
    ),
    "positions-length": Invalid(
        {"query_positions": tensor(6, dtype=torch.int64)},
        ValueError,
        ("query_positions", "[6]", "[2, 4, 5]"),
    ),
    "positions-4d": Invalid(
        {"query_positions": tensor(1, B, H, L, dtype=torch.int64)},
        ValueError,
        ("query_positions", "[1, 2, 4, 5]"),
    ),
    # Window, slopes, sinks.
    "window-left": Invalid({"window": (-2, 0)}, ValueError, ("window", "(left, right)", "(-2, 0)")),
    "window-right": Invalid(
        {"window": (3, -7)}, ValueError, ("window", "(3, -7)", "-1 for no bound")
    ),
    "window-smallest": Invalid({"window": (-(2**63), 0)}, ValueError, ("window", str(-(2**63)))),
    "window-of-one": Invalid({"window": [4]}, ValueError, ("window", "two numbers", "[4]")),
    "window-of-three": Invalid({"window": (1, 2, 3)}, ValueError, ("window", "[1, 2, 3]")),
    "window-of-none": Invalid({"window": []}, ValueError, ("window", "[]")),
    "slopes-scalar": Invalid({"alibi_slopes": tensor()}, ValueError, ("alibi_slopes", "[4]", "[]")),
    "slopes-one": Invalid({"alibi_slopes": tensor(1)}, ValueError, ("alibi_slopes", "[4]", "[1]")),
    "slopes-batch": Invalid(
        {"alibi_slopes": tensor(3, H)}, ValueError, ("alibi_slopes", "[batch, heads]", "[3, 4]")
    ),
    "slopes-broadcast": Invalid(
        {"alibi_slopes": tensor(1, H)}, ValueError, ("alibi_slopes", "[1, 4]")
    ),
    "slopes-3d": Invalid(
        {"alibi_slopes": tensor(B, H, 1)}, ValueError, ("alibi_slopes", "[2, 4, 1]")
    ),
    "slopes-float64": Invalid(
        {"alibi_slopes": tensor(H, dtype=torch.float64)},
        TypeError,
        ("alibi_slopes", "Float", "Double", ".to(query.dtype)"),
    ),
    "slopes-int64": Invalid(
        {"alibi_slopes": tensor(H, dtype=torch.int64)}, TypeError, ("alibi_slopes", "Long")
    ),
    "sinks-scalar": Invalid(
        {"sinks": tensor()}, ValueError, ("sinks", "[heads] = [4] or [batch, heads]", "[]")
    ),
    "sinks-heads": Invalid({"sinks": tensor(5)}, ValueError, ("sinks", "[4]", "[5]")),
    "sinks-batch": Invalid({"sinks": tensor(B + 1, H)}, ValueError, ("sinks", "[4]", "[3, 4]")),
    "sinks-float16": Invalid(
        {"sinks": tensor(H, dtype=torch.float16)}, TypeError, ("sinks", "Half")
    ),
    "sinks-bool": Invalid({"sinks": tensor(H, dtype=torch.bool)}, TypeError, ("sinks", "Bool")),
    # Numbers.
    "softcap-negative": Invalid({"softcap": -1.0}, ValueError, ("softcap", "-1", "0 for none")),
    "softcap-nan": Invalid({"softcap": math.nan}, ValueError, ("softcap", "finite", "nan")),
    "softcap-infinite": Invalid({"softcap": math.inf}, ValueError, ("softcap", "finite", "inf")),
    "dropout-negative": Invalid({"dropout": -0.1}, ValueError, ("dropout", "-0.1")),
    "dropout-above-one": Invalid({"dropout": 1.5}, ValueError, ("dropout", "1.5")),
    "dropout-nan": Invalid({"dropout": math.nan}, ValueError, ("dropout", "nan")),
    "dropout-infinite": Invalid({"dropout": math.inf}, ValueError, ("dropout", "inf")),
    "block-size-zero": Invalid({"block_size": 0}, ValueError, ("block_size", "0")),
    "block-size-negative": Invalid({"block_size": -64}, ValueError, ("block_size", "-64")),
}

OPS: dict[str, Callable[..., Any]] = {
    name: getattr(torch.ops.flash, name) for name in ("attention", "attention_with_lse")
}


def message_of(call: Callable[..., Any], arguments: dict[str, Any], error: type[Exception]) -> str:
    """The first line of the error raised by `call`; its type must be exactly `error`."""
    with pytest.raises(error) as caught:
        call(**arguments)
    assert type(caught.value) is error
    return str(caught.value).splitlines()[0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID.keys())
def test_invalid_arguments(invalid: Invalid, op: str, device: str) -> None:
    arguments = valid_call() | invalid.changes
    if device == "meta":
        arguments = {
            n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in arguments.items()
        }
    message = message_of(OPS[op], arguments, invalid.error)
    assert message.startswith("flash::attention"), message
    assert ": expected " in message and ", got " in message, message
    for fragment in invalid.fragments:
        assert fragment in message, f"{fragment!r} is not in: {message}"


@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID.keys())
def test_invalid_arguments_that_require_grad(invalid: Invalid) -> None:
    """The autograd kernel must not fail first with another message."""
    arguments = valid_call() | invalid.changes
    if arguments["query"].is_floating_point():
        arguments["query"] = arguments["query"].clone().requires_grad_()
    message = message_of(OPS["attention"], arguments, invalid.error)
    assert message.startswith("flash::attention: expected "), message


@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID.keys())
def test_standard_attention_raises_the_same_errors(invalid: Invalid) -> None:
    arguments = valid_call() | invalid.changes
    if arguments.pop("block_size", None) is not None:
        arguments["dropout"] = 2.0  # it has no block_size; use another invalid number
    message = message_of(torch.ops.flash.standard_attention, arguments, invalid.error)
    assert message.startswith("flash::") and ": expected " in message, message


@pytest.mark.parametrize(
    "name", ["query", "key", "value", "bias", "query_positions", "alibi_slopes", "sinks"]
)
def test_tensors_on_two_devices(name: str) -> None:
    arguments = valid_call()
    arguments["bias"] = tensor(L, S)
    arguments["query_positions"] = tensor(L, dtype=torch.int64)
    arguments["alibi_slopes"] = tensor(H)
    arguments["sinks"] = tensor(H)
    arguments[name] = arguments[name].to("meta")
    message = message_of(OPS["attention"], arguments, ValueError)
    for fragment in ("flash::attention: expected ", "device", "cpu", "meta"):
        assert fragment in message, message


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("bias", "expected"),
    [((B + 1, L, S), "[2, 5, 16]"), ((1, H, L, S), "[2, 1, 5, 16]"), ((L, S + 1), "[2, 5, 16]")],
    ids=["batch", "heads", "keys"],
)
def test_bias_shape_of_a_three_dimensional_call(
    bias: tuple[int, ...], expected: str, device: str
) -> None:
    arguments = {
        "query": tensor(B, L, D, device=device),
        "key": tensor(B, S, D, device=device),
        "value": tensor(B, S, DV, device=device),
        "bias": tensor(*bias, device=device),
    }
    message = message_of(OPS["attention"], arguments, ValueError)
    assert message.startswith("flash::attention: expected bias to broadcast to "), message
    assert expected in message and str(list(bias)) in message, message


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_three_dimensional_call_has_one_head(name: str, device: str) -> None:
    arguments = {
        "query": tensor(B, L, D, device=device),
        "key": tensor(B, S, D, device=device),
        "value": tensor(B, S, DV, device=device),
        name: tensor(H, device=device),
    }
    message = message_of(OPS["attention"], arguments, ValueError)
    assert f"expected {name} of shape [heads] = [1]" in message and "got [4]" in message, message


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [((-1, 1, 1, 1, 0.5), "-1"), ((1, 1, 1, 1, -0.5), "-0.5"), ((1, 1, 1, 1, math.nan), "nan")],
    ids=["negative-size", "negative-dropout", "nan-dropout"],
)
def test_invalid_dropout_mask_arguments(arguments: tuple[Any, ...], fragment: str) -> None:
    with pytest.raises(ValueError, match=r"^flash::\w+: expected .*got ") as caught:
        torch.ops.flash.dropout_mask(*arguments)
    assert fragment in str(caught.value).splitlines()[0]


def test_invalid_attention_memory_arguments() -> None:
    good = (1, 1, 8, 8, 4, 4)
    with pytest.raises(ValueError, match=r"^flash::\w+: expected .*got .*-8"):
        torch.ops.flash.attention_memory(1, 1, -8, 8, 4, 4, torch.float32)
    with pytest.raises(ValueError, match=r"^flash::\w+: expected .*got 0"):
        torch.ops.flash.attention_memory(*good, torch.float32, 0)
    with pytest.raises(TypeError, match=r"^flash::\w+: expected .*got Long"):
        torch.ops.flash.attention_memory(*good, torch.int64)


def test_refused_call_does_not_advance_the_generator() -> None:
    """A refused call must not draw a seed, so that a corrected retry stays reproducible."""
    torch.manual_seed(5)
    message_of(OPS["attention"], valid_call() | {"dropout": 0.5, "block_size": 0}, ValueError)
    after_error = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(after_error, torch.rand(()))
