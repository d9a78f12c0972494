"""torch.autocast on the CPU: the operator computes in float32."""

from __future__ import annotations

from typing import Any

import flash_attention
import pytest
import torch
from problems import Problem, Spec, make_problem

LOW = [torch.bfloat16, torch.float16]


def low_precision(spec: Spec, dtype: torch.dtype) -> Problem:
    problem = make_problem(spec, torch.float32)
    problem.inputs = {
        name: t.to(dtype) if t.is_floating_point() else t for name, t in problem.inputs.items()
    }
    return problem


@pytest.mark.parametrize("op", ["attention", "attention_with_lse"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(
    "option",
    [{}, {"bias": "1H1S"}, {"mask": "LS"}, {"alibi": "BH", "sinks": "H"}],
    ids=str,
)
def test_inputs_become_float32(option: dict[str, Any], dtype: torch.dtype, op: str) -> None:
    problem = low_precision(Spec(causal=True, **option), dtype)
    single = {n: t.float() if t.is_floating_point() else t for n, t in problem.inputs.items()}
    function = getattr(flash_attention, op)
    expected = function(**single, causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = function(**problem.inputs, causal=True)
    if op == "attention":
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_gradients_come_back_in_the_type_of_the_input() -> None:
    spec = Spec(bias="1H1S", alibi="H", sinks="H")
    problem = low_precision(spec, torch.bfloat16)
    leaves = problem.leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention.attention(**leaves)
    out.backward(problem.grad_out)
    exact = make_problem(spec, torch.float32)
    exact.inputs = {n: t.float() for n, t in problem.inputs.items()}
    single = exact.leaves()
    flash_attention.attention(**single).backward(problem.grad_out)
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == torch.bfloat16
        assert torch.equal(leaf.grad, single[name].grad.bfloat16()), name


def test_mixed_inputs_are_brought_together() -> None:
    """As they come out of a layer under autocast (bfloat16) and out of a norm (float32)."""
    inputs = make_problem(Spec(), torch.float32).inputs
    inputs["value"] = inputs["value"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention.attention(**inputs)
    inputs["value"] = inputs["value"].float()
    assert torch.equal(out, flash_attention.attention(**inputs))


def test_float64_stays_float64() -> None:
    inputs = make_problem(Spec(bias="LS", alibi="H", sinks="H"), torch.float64).inputs
    expected = flash_attention.attention(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flash_attention.attention(**inputs), expected)


def test_without_autocast_low_precision_is_refused() -> None:
    problem = low_precision(Spec(), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            with pytest.raises(NotImplementedError, match="BFloat16"):
                flash_attention.attention(**problem.inputs)


def test_a_layer_trains_under_autocast() -> None:
    layer = torch.nn.Linear(8, 24)
    x = torch.randn(2, 10, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in layer(x).chunk(3, -1))
        assert q.dtype == torch.bfloat16
        out = flash_attention.attention(q, k, v, causal=True)
    out.square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().sum() > 0
