"""Every operator gives the same shapes, dtypes and strides for Meta as for CPU tensors."""

from __future__ import annotations

from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor

from support.problems import DTYPES, DTYPES_16BIT, Spec, dtype_name, make_problem

SPECS = {
    "plain": Spec(),
    "three-dimensional": Spec(rank=3),
    "transposed": Spec(layout="transposed"),
    "column-major": Spec(layout="column-major"),
    "all": Spec(key_heads=2, bias="1HLS", causal=True, positions="L", alibi="BH", sinks="H"),
    "mask": Spec(mask="B11S"),
    "dropout": Spec(dropout=0.3),
    "decoding": Spec(1, 2, queries=2, keys=2100),
    "empty": Spec(queries=0),
}


def described(tensors: Any) -> list[tuple[Any, ...]]:
    """(shape, dtype, stride) of each tensor."""
    each = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    return [(tuple(t.shape), t.dtype, t.stride()) for t in each]


def on_meta(arguments: dict[str, Any]) -> dict[str, Any]:
    return {n: x.to("meta") if isinstance(x, Tensor) else x for n, x in arguments.items()}


@pytest.mark.parametrize("operator", ["attention", "attention_with_lse", "_forward"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_forward(dtype: torch.dtype, spec: Spec, operator: str) -> None:
    problem = make_problem(spec, dtype)
    arguments = problem.inputs | problem.options
    call = getattr(torch.ops.flash, operator)
    assert described(call(**arguments)) == described(call(**on_meta(arguments)))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_backward(dtype: torch.dtype, spec: Spec) -> None:
    problem = make_problem(spec, dtype)
    out, row_stats, seed = torch.ops.flash._forward(**problem.inputs, **problem.options)
    arguments: dict[str, Any] = dict.fromkeys(("bias", "query_positions", "alibi_slopes", "sinks"))
    arguments |= problem.inputs | problem.options
    arguments |= {"grad_out": problem.grad_out, "grad_lse": problem.grad_lse}
    arguments |= {"out": out, "row_stats": row_stats, "seed": seed}
    names = ("query", "key", "value", "bias", "alibi_slopes", "sinks")
    for needed in ([n in problem.differentiable for n in names], [False] * 6):
        arguments["needed"] = needed
        found = torch.ops.flash._backward(**on_meta(arguments))
        assert described(torch.ops.flash._backward(**arguments)) == described(found)


@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_packed_sequences(dtype: torch.dtype) -> None:
    shapes = {"query": (9, 4, 8), "key": (11, 2, 8), "value": (11, 4, 6)}
    arguments: dict[str, Any] = {n: torch.randn(s).to(dtype) for n, s in shapes.items()}
    arguments |= {"cu_seqlens_q": torch.tensor([0, 4, 9]), "cu_seqlens_k": torch.tensor([0, 5, 11])}
    arguments |= {
        "alibi_slopes": torch.ones(4, dtype=dtype),
        "sinks": torch.ones(2, 4, dtype=dtype),
    }
    for name in ("varlen_attention", "_varlen_forward"):
        call = getattr(torch.ops.flash, name)
        assert described(call(**arguments)) == described(call(**on_meta(arguments)))
    saved = zip(
        ("out", "row_stats", "seed"), torch.ops.flash._varlen_forward(**arguments), strict=True
    )
    arguments |= dict(saved) | {"grad_out": torch.randn(9, 4, 6).to(dtype)}
    options = {"bias": None, "causal": True, "query_positions": None, "window": None}
    options |= {"softcap": 0.0, "scale": None, "dropout": 0.0, "block_size": 64, "use_simd": True}
    for needed in ([True] * 5, [False] * 5):
        call, both = torch.ops.flash._varlen_backward, arguments | options | {"needed": needed}
        assert described(call(**both)) == described(call(**on_meta(both)))


@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_lse_of_16_bit_queries_is_float32(dtype: torch.dtype) -> None:
    inputs = [torch.empty(2, 4, n, 8, dtype=dtype, device="meta") for n in (5, 7, 7)]
    out, lse = flash_attention.attention_with_lse(*inputs)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = [torch.empty(2, 4, n, 8, dtype=dtype) for n in (5, 7, 7)]
        out, lse = flash_attention.attention_with_lse(*fake)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
