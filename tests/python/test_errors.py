"""Bad input: the exception, and a text that says what was expected and what came.

CPU and Meta tensors go through one checking function, so every case runs on both; no case may
depend on values, which a Meta tensor does not have.
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
class Bad:
    """Arguments that replace those of the valid call, and what must come of it."""

    changes: dict[str, Any]
    error: type[Exception]
    fragments: tuple[str, ...]


def all_three(dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) for name, x in valid_call().items()}


BAD: dict[str, Bad] = {
    # Lengths of key and value first: reading past the shorter one is how this crashes elsewhere.
    "value-shorter": Bad({"value": tensor(B, H, 9, DV)}, ValueError, ("key", "value", "16", "9")),
    "value-longer": Bad({"value": tensor(B, H, 17, DV)}, ValueError, ("key", "value", "16", "17")),
    "value-much-longer": Bad(
        {"value": tensor(1, 1, 1, 1).expand(B, H, 4_000_000, DV)}, ValueError, ("16", "4000000")
    ),
    "key-empty": Bad({"key": tensor(B, H, 0, D)}, ValueError, ("0", "16")),
    "key-head-dim": Bad({"key": tensor(B, H, S, 7)}, ValueError, ("query", "key", "8", "7")),
    "key-batch": Bad({"key": tensor(3, H, S, D)}, ValueError, ("batch", "2", "3")),
    "value-batch": Bad({"value": tensor(1, H, S, DV)}, ValueError, ("batch", "2", "1")),
    "key-heads": Bad({"key": tensor(B, 3, S, D)}, ValueError, ("multiple", "4", "3")),
    "value-heads": Bad({"value": tensor(B, 3, S, DV)}, ValueError, ("multiple", "4", "3")),
    "more-key-heads": Bad({"key": tensor(B, 8, S, D)}, ValueError, ("multiple", "4", "8")),
    "no-key-heads": Bad({"key": tensor(B, 0, S, D)}, ValueError, ("multiple", "4", "0")),
    "no-value-heads": Bad({"value": tensor(B, 0, S, DV)}, ValueError, ("multiple", "4", "0")),
    "query-2d": Bad({"query": tensor(L, D)}, ValueError, ("query", "[5, 8]")),
    "query-5d": Bad({"query": tensor(1, B, H, L, D)}, ValueError, ("[1, 2, 4, 5, 8]",)),
    "query-scalar": Bad({"query": tensor()}, ValueError, ("query", "[]")),
    "query-3d-key-4d": Bad({"query": tensor(B, L, D)}, ValueError, ("[2, 5, 8]", "[2, 4, 16, 8]")),
    "value-3d": Bad({"value": tensor(B, S, DV)}, ValueError, ("[2, 16, 6]",)),
    # Types.
    "key-float64": Bad(
        {"key": tensor(B, H, S, D, dtype=torch.float64)}, TypeError, ("Float", "Double")
    ),
    "value-float64": Bad(
        {"value": tensor(B, H, S, DV, dtype=torch.float64)}, TypeError, ("Float", "Double")
    ),
    "value-int": Bad({"value": tensor(B, H, S, DV, dtype=torch.int64)}, TypeError, ("Long",)),
    "all-int64": Bad(all_three(torch.int64), TypeError, ("Long",)),
    "all-int8": Bad(all_three(torch.int8), TypeError, ("Char",)),
    "all-bool": Bad(all_three(torch.bool), TypeError, ("Bool",)),
    "all-complex": Bad(all_three(torch.complex64), TypeError, ("ComplexFloat",)),
    # Bias.
    "bias-keys": Bad({"bias": tensor(L, 15)}, ValueError, ("bias", "[5, 15]", "[2, 4, 5, 16]")),
    "bias-queries": Bad({"bias": tensor(4, 1)}, ValueError, ("bias", "[4, 1]", "[2, 4, 5, 16]")),
    "bias-heads": Bad({"bias": tensor(2, 1, 1)}, ValueError, ("bias", "[2, 1, 1]")),
    "bias-batch": Bad({"bias": tensor(3, 1, 1, S)}, ValueError, ("bias", "[3, 1, 1, 16]")),
    "bias-5d": Bad({"bias": tensor(1, B, H, L, S)}, ValueError, ("bias", "[1, 2, 4, 5, 16]")),
    "bias-empty": Bad({"bias": tensor(0)}, ValueError, ("bias", "[0]")),
    "mask-keys": Bad({"bias": tensor(L, 15, dtype=torch.bool)}, ValueError, ("bias", "[5, 15]")),
    "bias-int64": Bad({"bias": tensor(L, S, dtype=torch.int64)}, TypeError, ("bias", "Long")),
    "bias-uint8": Bad({"bias": tensor(L, S, dtype=torch.uint8)}, TypeError, ("bias", "Byte")),
    "bias-float64": Bad(
        {"bias": tensor(L, S, dtype=torch.float64)}, TypeError, ("bias", "Float", "Double")
    ),
    "bias-float16": Bad({"bias": tensor(L, S, dtype=torch.float16)}, TypeError, ("bias", "Half")),
    # Positions.
    "positions-float": Bad({"query_positions": tensor(L)}, TypeError, ("query_positions", "Float")),
    "positions-int32": Bad(
        {"query_positions": tensor(L, dtype=torch.int32)}, TypeError, ("query_positions", "Int")
    ),
    "positions-length": Bad(
        {"query_positions": tensor(6, dtype=torch.int64)},
        ValueError,
        ("query_positions", "[6]", "[2, 4, 5]"),
    ),
    "positions-4d": Bad(
        {"query_positions": tensor(1, B, H, L, dtype=torch.int64)},
        ValueError,
        ("query_positions", "[1, 2, 4, 5]"),
    ),
    # Window, slopes, sinks.
    "window-left": Bad({"window": (-2, 0)}, ValueError, ("window", "(left, right)", "(-2, 0)")),
    "window-right": Bad({"window": (3, -7)}, ValueError, ("window", "(3, -7)", "-1 for no bound")),
    "window-smallest": Bad({"window": (-(2**63), 0)}, ValueError, ("window", str(-(2**63)))),
    "window-of-one": Bad({"window": [4]}, ValueError, ("window", "two numbers", "[4]")),
    "window-of-three": Bad({"window": (1, 2, 3)}, ValueError, ("window", "[1, 2, 3]")),
    "window-of-none": Bad({"window": []}, ValueError, ("window", "[]")),
    "slopes-scalar": Bad({"alibi_slopes": tensor()}, ValueError, ("alibi_slopes", "[4]", "[]")),
    "slopes-one": Bad({"alibi_slopes": tensor(1)}, ValueError, ("alibi_slopes", "[4]", "[1]")),
    "slopes-batch": Bad(
        {"alibi_slopes": tensor(3, H)}, ValueError, ("alibi_slopes", "[batch, heads]", "[3, 4]")
    ),
    "slopes-broadcast": Bad({"alibi_slopes": tensor(1, H)}, ValueError, ("alibi_slopes", "[1, 4]")),
    "slopes-3d": Bad({"alibi_slopes": tensor(B, H, 1)}, ValueError, ("alibi_slopes", "[2, 4, 1]")),
    "slopes-float64": Bad(
        {"alibi_slopes": tensor(H, dtype=torch.float64)},
        TypeError,
        ("alibi_slopes", "Float", "Double", ".to(query.dtype)"),
    ),
    "slopes-int64": Bad(
        {"alibi_slopes": tensor(H, dtype=torch.int64)}, TypeError, ("alibi_slopes", "Long")
    ),
    "sinks-scalar": Bad(
        {"sinks": tensor()}, ValueError, ("sinks", "[heads] = [4] or [batch, heads]", "[]")
    ),
    "sinks-heads": Bad({"sinks": tensor(5)}, ValueError, ("sinks", "[4]", "[5]")),
    "sinks-batch": Bad({"sinks": tensor(B + 1, H)}, ValueError, ("sinks", "[4]", "[3, 4]")),
    "sinks-float16": Bad({"sinks": tensor(H, dtype=torch.float16)}, TypeError, ("sinks", "Half")),
    "sinks-bool": Bad({"sinks": tensor(H, dtype=torch.bool)}, TypeError, ("sinks", "Bool")),
    # Numbers.
    "softcap-negative": Bad({"softcap": -1.0}, ValueError, ("softcap", "-1", "0 for none")),
    "softcap-nan": Bad({"softcap": math.nan}, ValueError, ("softcap", "finite", "nan")),
    "softcap-infinite": Bad({"softcap": math.inf}, ValueError, ("softcap", "finite", "inf")),
    "dropout-negative": Bad({"dropout": -0.1}, ValueError, ("dropout", "-0.1")),
    "dropout-above-one": Bad({"dropout": 1.5}, ValueError, ("dropout", "1.5")),
    "dropout-nan": Bad({"dropout": math.nan}, ValueError, ("dropout", "nan")),
    "dropout-infinite": Bad({"dropout": math.inf}, ValueError, ("dropout", "inf")),
    "block-size-zero": Bad({"block_size": 0}, ValueError, ("block_size", "0")),
    "block-size-negative": Bad({"block_size": -64}, ValueError, ("block_size", "-64")),
}

OPS: dict[str, Callable[..., Any]] = {
    name: getattr(torch.ops.flash, name) for name in ("attention", "attention_with_lse")
}


def message_of(call: Callable[..., Any], arguments: dict[str, Any], error: type[Exception]) -> str:
    """The first line of what `call` raises; the type must be `error` itself, not a subclass."""
    with pytest.raises(error) as caught:
        call(**arguments)
    assert type(caught.value) is error
    return str(caught.value).splitlines()[0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input(bad: Bad, op: str, device: str) -> None:
    arguments = valid_call() | bad.changes
    if device == "meta":
        arguments = {
            n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in arguments.items()
        }
    message = message_of(OPS[op], arguments, bad.error)
    assert message.startswith("flash::attention"), message
    assert ": expected " in message and ", got " in message, message
    for fragment in bad.fragments:
        assert fragment in message, f"{fragment!r} is not in: {message}"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_that_requires_grad(bad: Bad) -> None:
    """The autograd key must not fail first, with a text of its own."""
    arguments = valid_call() | bad.changes
    if arguments["query"].is_floating_point():
        arguments["query"] = arguments["query"].clone().requires_grad_()
    message = message_of(OPS["attention"], arguments, bad.error)
    assert message.startswith("flash::attention: expected "), message


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_standard_attention_refuses_the_same(bad: Bad) -> None:
    arguments = valid_call() | bad.changes
    if arguments.pop("block_size", None) is not None:
        arguments["dropout"] = 2.0  # it has no block_size; any bad number will do
    message = message_of(torch.ops.flash.standard_attention, arguments, bad.error)
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
def test_bias_of_a_three_dimensional_call(
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
def test_a_three_dimensional_call_has_one_head(name: str, device: str) -> None:
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
def test_bad_dropout_mask(arguments: tuple[Any, ...], fragment: str) -> None:
    with pytest.raises(ValueError, match=r"^flash::\w+: expected .*got ") as caught:
        torch.ops.flash.dropout_mask(*arguments)
    assert fragment in str(caught.value).splitlines()[0]


def test_bad_attention_memory() -> None:
    good = (1, 1, 8, 8, 4, 4)
    with pytest.raises(ValueError, match=r"^flash::\w+: expected .*got .*-8"):
        torch.ops.flash.attention_memory(1, 1, -8, 8, 4, 4, torch.float32)
    with pytest.raises(ValueError, match=r"^flash::\w+: expected .*got 0"):
        torch.ops.flash.attention_memory(*good, torch.float32, 0)
    with pytest.raises(TypeError, match=r"^flash::\w+: expected .*got Long"):
        torch.ops.flash.attention_memory(*good, torch.int64)


def test_a_failed_call_leaves_the_generator_alone() -> None:
    """A refused call must not draw a seed: a retry gives the numbers of the first good call."""
    torch.manual_seed(5)
    message_of(OPS["attention"], valid_call() | {"dropout": 0.5, "block_size": 0}, ValueError)
    after_error = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(after_error, torch.rand(()))
