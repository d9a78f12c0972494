"""torch.autocast on the CPU: attention runs in the autocast dtype, as torch's own does."""

from __future__ import annotations

from typing import Any

import flash_attention
import pytest
import torch

from support.forked import run_forked
from support.problems import DTYPES_16BIT, Problem, Spec, dtype_name, make_problem

MAIN = ("query", "key", "value")

every_16bit_dtype = pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
ops = pytest.mark.parametrize("op", ["attention", "attention_with_lse"])


def cast(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in problem.inputs.items()}


@ops
@every_16bit_dtype
@pytest.mark.parametrize(
    "option",
    [{}, {"bias": "1H1S"}, {"mask": "LS"}, {"alibi": "BH", "sinks": "H"}],
    ids=str,
)
def test_inputs_are_cast_to_the_autocast_dtype(
    option: dict[str, Any], dtype: torch.dtype, op: str
) -> None:
    """Query, key and value are cast; float32 bias, slopes and sinks are not."""
    problem = make_problem(Spec(causal=True, **option), torch.float32)
    lowered = {n: t.to(dtype) if n in MAIN else t for n, t in problem.inputs.items()}
    function = getattr(flash_attention, op)
    expected = function(**lowered, causal=True)
    with torch.autocast("cpu", dtype=dtype):
        actual = function(**problem.inputs, causal=True)
    if op == "attention":
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert actual[0].dtype == dtype


@ops
def test_options_in_another_16_bit_dtype_are_cast(op: str) -> None:
    inputs = cast(make_problem(Spec(bias="LS", alibi="H", sinks="H"), torch.float32), torch.float16)
    function = getattr(flash_attention, op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = function(**inputs)
    expected = function(**{n: t.bfloat16() for n, t in inputs.items()})
    if op == "attention":
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def call_with_freed(op: str, name: str) -> None:
    """Query, key and value in float32, the rest in float16: autocast casts, and so reads, each."""
    problem = make_problem(Spec(bias="LS", alibi="H", sinks="H"), torch.float32)
    inputs = cast(problem, torch.float16) | {n: problem.inputs[n] for n in MAIN}
    inputs[name].untyped_storage().resize_(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        getattr(flash_attention, op)(**inputs)


@pytest.mark.parametrize("name", [*MAIN, "bias", "alibi_slopes", "sinks"])
@ops
def test_tensor_with_freed_storage_is_refused(op: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected \d+ bytes of storage .*, got 0"):
        run_forked(lambda: call_with_freed(op, name))


@every_16bit_dtype
def test_gradients_have_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(bias="1H1S", alibi="H", sinks="H"), torch.float32)
    leaves = problem.leaves()
    with torch.autocast("cpu", dtype=dtype):
        out = flash_attention.attention(**leaves)
    out.backward(problem.grad_out.to(dtype))
    alone = problem.leaves()
    lowered = {n: t.to(dtype) if n in MAIN else t for n, t in alone.items()}
    flash_attention.attention(**lowered).backward(problem.grad_out.to(dtype))
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == torch.float32
        assert torch.equal(leaf.grad, alone[name].grad), name


def test_inputs_of_mixed_dtypes_are_cast() -> None:
    """As they come from a linear layer under autocast (bfloat16) and from a norm (float32)."""
    inputs = make_problem(Spec(), torch.float32).inputs
    inputs["value"] = inputs["value"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention.attention(**inputs)
    expected = flash_attention.attention(**{n: t.bfloat16() for n, t in inputs.items()})
    assert torch.equal(out, expected)


def test_float64_stays_float64() -> None:
    inputs = make_problem(Spec(bias="LS", alibi="H", sinks="H"), torch.float64).inputs
    expected = flash_attention.attention(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flash_attention.attention(**inputs), expected)


def test_disabled_autocast_changes_nothing() -> None:
    inputs = make_problem(Spec(), torch.float32).inputs
    expected = flash_attention.attention(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert torch.equal(flash_attention.attention(**inputs), expected)


def test_drop_in_matches_torch() -> None:
    query, key, value = (torch.randn(2, 4, 10, 8) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = flash_attention.scaled_dot_product_attention(query, key, value, is_causal=True)
        torchs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert ours.dtype == torchs.dtype == torch.bfloat16
    # Both results are rounded to 8 bits, and torch rounds the weights as well.
    torch.testing.assert_close(ours.float(), torchs.float(), rtol=0.02, atol=0.02)


def test_packed_sequences() -> None:
    query, key, value = (torch.randn(9, 2, 8) for _ in range(3))
    starts = torch.tensor([0, 4, 9])
    sinks = torch.randn(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention.varlen_attention(
            query, key.bfloat16(), value, starts, starts, sinks=sinks
        )
    lowered = [t.bfloat16() for t in (query, key, value)]
    expected = flash_attention.varlen_attention(*lowered, starts, starts, sinks=sinks)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


def test_packed_sequences_cast_options_in_another_16_bit_dtype() -> None:
    rows = [torch.randn(9, 2, 8) for _ in range(3)]
    starts = torch.tensor([0, 4, 9])
    options = {"alibi_slopes": torch.rand(2, 2).half(), "sinks": torch.randn(2).half()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention.varlen_attention(*rows, starts, starts, **options)
    lowered = [t.bfloat16() for t in rows]
    options = {n: t.bfloat16() for n, t in options.items()}
    expected = flash_attention.varlen_attention(*lowered, starts, starts, **options)
    assert torch.equal(out, expected)


def test_layer_trains_under_autocast() -> None:
    layer = torch.nn.Linear(8, 24)
    x = torch.randn(2, 10, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in layer(x).chunk(3, -1))
        assert q.dtype == torch.bfloat16
        out = flash_attention.attention(q, k, v, causal=True)
        assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().sum() > 0
