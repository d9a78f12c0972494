"""Every operator, public or private, refuses arguments that its kernels cannot handle.

Each tensor of a valid call in turn gets every wrong size, dtype, device and layout, and each number
extreme values. A kernel that trusted a wrong size would read or write out of bounds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.forked import run_forked
from support.invalid_tensors import Arguments, Change, tensor_changes, zeros

# No size plus or minus one is valid in its place or equals 1, which broadcasts.
BATCH, HEADS, KEY_HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 3, 12, 6, 4, 7, 5, 8
SEQUENCES, PACKED_QUERIES, PACKED_KEYS = 3, 9, 11


def inputs() -> Arguments:
    return {
        "query": zeros(BATCH, HEADS, QUERIES, WIDTH),
        "key": zeros(BATCH, KEY_HEADS, KEYS, WIDTH),
        "value": zeros(BATCH, HEADS, KEYS, VALUE_WIDTH),
    }


def options() -> Arguments:
    return {
        "bias": zeros(BATCH, HEADS, QUERIES, KEYS),
        "causal": True,
        "query_positions": zeros(BATCH, HEADS, QUERIES, dtype=torch.int64),
        "window": [3, 1],
        "alibi_slopes": zeros(BATCH, HEADS),
        "softcap": 2.0,
        "sinks": zeros(BATCH, HEADS),
        "scale": 0.5,
        "dropout": 0.25,
    }


def kernel_options() -> Arguments:
    return options() | {"block_size": 64, "use_simd": True}


def saved() -> Arguments:
    return {
        "out": zeros(BATCH, HEADS, QUERIES, VALUE_WIDTH),
        "row_stats": zeros(2, BATCH, HEADS, QUERIES),
        "seed": zeros(1, dtype=torch.int64),
    }


def backward() -> Arguments:
    grads = {
        "grad_out": zeros(BATCH, HEADS, QUERIES, VALUE_WIDTH),
        "grad_lse": zeros(BATCH, HEADS, QUERIES),
    }
    return grads | inputs() | saved() | kernel_options() | {"needed": [True] * 6}


def place() -> Arguments:
    """That of the whole call."""
    return {"seed": zeros(1, dtype=torch.int64), "place": [0, 0, 0, 0, HEADS]}


def packed_inputs() -> Arguments:
    return {
        "query": zeros(PACKED_QUERIES, HEADS, WIDTH),
        "key": zeros(PACKED_KEYS, KEY_HEADS, WIDTH),
        "value": zeros(PACKED_KEYS, HEADS, VALUE_WIDTH),
        "cu_seqlens_q": torch.tensor([0, 2, 5, PACKED_QUERIES]),
        "cu_seqlens_k": torch.tensor([0, 0, 4, PACKED_KEYS]),
    }


def packed_options() -> Arguments:
    per_head = {n: zeros(SEQUENCES, HEADS) for n in ("alibi_slopes", "sinks")}
    return kernel_options() | {"bias": None, "query_positions": None} | per_head


def packed_backward() -> Arguments:
    saved_rows = {
        "out": zeros(PACKED_QUERIES, HEADS, VALUE_WIDTH),
        "row_stats": zeros(2, PACKED_QUERIES * HEADS),
        "seed": zeros(1, dtype=torch.int64),
    }
    grad = {"grad_out": zeros(PACKED_QUERIES, HEADS, VALUE_WIDTH)}
    return grad | packed_inputs() | saved_rows | packed_options() | {"needed": [True] * 5}


def sdpa() -> Arguments:
    mask = {"attn_mask": zeros(BATCH, HEADS, QUERIES, KEYS)}
    return inputs() | mask | {"dropout_p": 0.25, "scale": 0.5, "enable_gqa": True}


VALUE_WIDTHS = {f"value {change}" for change in ("3 + 1", "3 - 1", "3 = 0")}
PACKED_VALUE_WIDTHS = {f"value {change}" for change in ("2 + 1", "2 - 1", "2 = 0")}
BROADCASTS = {f"{name} drop" for name in ("bias", "query_positions", "alibi_slopes", "sinks")}
OMITTED = {f"{name} None" for name in ("bias", "query_positions", "alibi_slopes", "sinks")}
OFFSETS = {"cu_seqlens_q int32", "cu_seqlens_k int32"}


@dataclass
class Operator:
    """A valid call, and the changes that keep it valid."""

    valid: Callable[[], Arguments]
    allowed: set[str] = field(default_factory=set)
    unchecked_on_meta: set[str] = field(default_factory=set)  # prefixes of changes
    devices: tuple[str, ...] = ("cpu", "meta")


FORWARD = VALUE_WIDTHS | BROADCASTS | OMITTED | {"bias bool"}
PACKED_PER_HEAD = {"alibi_slopes drop", "sinks drop"}
# Compiled autograd traces with placeholder gradients of any shape and dtype.
TRACED_GRADIENTS = {"grad_out", "grad_lse"}
# The offsets of meta tensors have no values to compare with the number of rows.
PACKED_META = {"query 0"}
PACKED = PACKED_VALUE_WIDTHS | PACKED_PER_HEAD | OMITTED | OFFSETS
OPERATORS: dict[str, Operator] = {
    "attention": Operator(lambda: inputs() | kernel_options(), FORWARD),
    "attention_with_lse": Operator(lambda: inputs() | kernel_options(), FORWARD),
    "_forward": Operator(lambda: inputs() | kernel_options(), FORWARD),
    # The torch operators it is composed of accept a sparse tensor here.
    "standard_attention": Operator(lambda: inputs() | options(), FORWARD | {"alibi_slopes sparse"}),
    "_backward": Operator(
        backward, BROADCASTS | {"grad_lse None", "query_positions None"}, TRACED_GRADIENTS
    ),
    # Processes exchange the results of these two, so no meta tensor reaches them.
    "_forward_part": Operator(
        lambda: inputs() | place() | {"whole_rows": True} | kernel_options(),
        FORWARD | {"seed drop", "seed add"},
        devices=("cpu",),
    ),
    "_backward_part": Operator(
        lambda: backward() | place(),
        BROADCASTS | {"grad_lse None", "query_positions None"},
        devices=("cpu",),
    ),
    "varlen_attention": Operator(lambda: packed_inputs() | packed_options(), PACKED, PACKED_META),
    "_varlen_forward": Operator(lambda: packed_inputs() | packed_options(), PACKED, PACKED_META),
    "_varlen_backward": Operator(packed_backward, PACKED_PER_HEAD | OFFSETS, TRACED_GRADIENTS),
    # Its dimensions broadcast, and a mask may have any floating dtype.
    "scaled_dot_product_attention": Operator(
        sdpa,
        VALUE_WIDTHS
        | {f"{name} {change}" for name in sdpa() for change in ("drop", "add")}
        | {f"attn_mask {change}" for change in ("None", "bool", "float64", "float16")},
    ),
}

EXTREMES: dict[str, list[Any]] = {
    "causal": [False],
    "window": [[-1, -1], [2**63 - 1] * 2, [-(2**63), 0], [0, 2**63 - 1], [1], [1, 2, 3], None],
    "softcap": [0.0, 5e-324, 1e308, -1.0, math.inf, math.nan],
    "scale": [None, 0.0, 5e-324, 1e308, math.inf, -math.inf, math.nan],
    "dropout": [0.0, 5e-324, 1.0, 1.5, -1.0, math.inf, math.nan],
    "dropout_p": [0.0, 5e-324, 1.0, 1.5, -1.0, math.inf, math.nan],
    "block_size": [1, 0, -1, 2**63 - 1, -(2**63)],
    "use_simd": [False],
    "needed": [[False] * 6, [False] * 5, [], True],
    "place": [
        [2**31 - 1, 0, 0, 0, HEADS],
        [0, 1, 0, 0, HEADS],
        [2**63 - 1] * 5,
        [-1] * 5,
        [],
        None,
    ],
    "whole_rows": [False],
    "enable_gqa": [False],
}


def number_changes(arguments: Arguments) -> Iterator[Change]:
    for name in arguments.keys() & EXTREMES.keys():
        for value in EXTREMES[name]:
            yield name, str(value), value


def call(operator: str, arguments: Arguments) -> Exception | None:
    """The exception that the call raises, or None."""
    try:
        getattr(torch.ops.flash, operator)(**arguments)
    except Exception as error:
        return error
    return None


def unrefused_changes(operator: str, device: str) -> list[str]:
    """Invalid tensors that were accepted, or whose error did not come from this library."""
    valid, allowed = OPERATORS[operator].valid(), OPERATORS[operator].allowed
    unchecked = tuple(OPERATORS[operator].unchecked_on_meta)
    found = []
    for name, change, value in tensor_changes(valid):
        arguments = valid | {name: value}
        if device == "meta":
            if change in ("device", "shrunk", "sparse"):
                continue  # CPU only
            arguments = {
                n: x.to("meta") if isinstance(x, Tensor) else x for n, x in arguments.items()
            }
        label = f"{name} {change}"
        if label in allowed or (device == "meta" and label.startswith(unchecked)):
            continue
        error = call(operator, arguments)
        if error is None:
            found.append(f"{label}: accepted")
        elif change == "sparse" and isinstance(error, (NotImplementedError, RuntimeError)):
            pass  # raised by the dispatcher, or by torch operators inside a composite one
        elif "meta" not in OPERATORS[operator].devices and isinstance(error, NotImplementedError):
            pass  # raised by the dispatcher: the tensor on another device is a meta tensor
        elif type(error) not in (TypeError, ValueError) or not str(error).startswith("flash::"):
            found.append(f"{label}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


@pytest.mark.parametrize(
    ("operator", "device"), [(name, x) for name in OPERATORS for x in OPERATORS[name].devices]
)
def test_invalid_tensors_are_refused(operator: str, device: str) -> None:
    assert run_forked(lambda: unrefused_changes(operator, device)) == []


def call_with_extremes(operator: str) -> None:
    """Extreme numbers one at a time, and random pairs of changes: a result or an error."""
    valid = OPERATORS[operator].valid()
    numbers = list(number_changes(valid))
    for name, _, value in numbers:
        call(operator, valid | {name: value})
    every = [*tensor_changes(valid), *numbers]
    rng = random.Random(0)
    for _ in range(300):
        (one, _, value), (other, _, another) = rng.sample(every, 2)
        call(operator, valid | {one: value, other: another})


@pytest.mark.parametrize("operator", OPERATORS)
def test_extreme_numbers_and_pairs_of_changes_do_not_crash(operator: str) -> None:
    run_forked(lambda: call_with_extremes(operator))


def test_valid_calls_succeed_and_every_operator_is_covered() -> None:
    for name, operator in OPERATORS.items():
        getattr(torch.ops.flash, name)(**operator.valid())
    with_tensors = {
        schema.name.removeprefix("flash::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("flash::")
        and any(str(a.type) in ("Tensor", "Optional[Tensor]") for a in schema.arguments)
    }
    assert with_tensors == OPERATORS.keys()


@pytest.mark.parametrize("needed", range(3, 6))
def test_gradient_of_an_absent_input_is_refused(needed: int) -> None:
    arguments = backward() | {"bias": None, "alibi_slopes": None, "sinks": None}
    arguments["needed"] = [n == needed for n in range(6)]
    name = ("bias", "alibi_slopes", "sinks")[needed - 3]
    with pytest.raises(
        ValueError, match=f"flash::_backward: expected {name}, whose gradient is ne"
    ):
        torch.ops.flash._backward(**arguments)


def test_gradient_of_a_boolean_mask_is_refused() -> None:
    arguments = backward() | {"bias": zeros(QUERIES, KEYS, dtype=torch.bool)}
    with pytest.raises(TypeError, match="bias, whose gradient is needed, of a floating dtype, got"):
        torch.ops.flash._backward(**arguments)


def test_refused_varlen_call_does_not_advance_the_generator() -> None:
    arguments = packed_inputs() | {"dropout": 0.5}
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="never to fall"):
        torch.ops.flash.varlen_attention(
            **arguments | {"cu_seqlens_q": torch.tensor([0, 5, 2, PACKED_QUERIES])}
        )
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(()))


UNSUPPORTED: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "sparse-rows": lambda x: x.flatten(0, -2).to_sparse_csr(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "complex": lambda x: x + 1j,
    "float8": lambda x: x.to(torch.float8_e4m3fn),
}


def unexpected_errors(operator: str, change: Callable[[Tensor], Tensor]) -> list[str]:
    valid = OPERATORS[operator].valid()
    found = []
    for name in ("query", "key", "value"):
        for requires_grad in (False, True):
            arguments = valid | {"query": valid["query"].clone().requires_grad_(requires_grad)}
            error = call(operator, arguments | {name: change(arguments[name].detach())})
            if type(error) not in (NotImplementedError, TypeError):
                found.append(f"{name}: {error!r}")
    return found


@pytest.mark.filterwarnings("ignore:.*nested tensors", "ignore:.*quantize", "ignore:Sparse CSR")
@pytest.mark.parametrize("change", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
@pytest.mark.parametrize(
    "operator", ["attention", "attention_with_lse", "_forward", "scaled_dot_product_attention"]
)
def test_unsupported_tensor_types_are_refused(
    operator: str, change: Callable[[Tensor], Tensor]
) -> None:
    assert run_forked(lambda: unexpected_errors(operator, change)) == []


def test_batched_seed_is_refused_under_vmap() -> None:
    """A batched call has one seed."""
    arguments = backward()
    seeds = arguments.pop("seed").expand(2, 1)
    with pytest.raises(NotImplementedError, match="flash::_backward: expected one seed"):
        torch.vmap(lambda s: torch.ops.flash._backward(**arguments, seed=s))(seeds)


def test_undo_without_an_active_replacement_is_refused() -> None:
    with pytest.raises(
        ValueError, match="_replace_sdpa: expected a replacement in force, got none"
    ):
        torch.ops.flash._replace_sdpa(False)
    query = torch.randn(1, 1, 4, 8)
    with flash_attention.replace_sdpa():  # the refused undo did not decrement the count
        expected = flash_attention.scaled_dot_product_attention(query, query, query)
        assert torch.equal(
            torch.nn.functional.scaled_dot_product_attention(query, query, query), expected
        )
