"""Output gradients of any layout: transposed, expanded, strided, offset."""

from __future__ import annotations

from collections.abc import Callable

import flash_attention
import pytest
import torch
from torch import Tensor

from support.checks import assert_close_to_reference
from support.problems import DTYPES, DTYPES_16BIT, Spec, dtype_name, make_problem
from support.reference import NAMES, Result
from support.tolerances import CLOSE

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "last-first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "every-second": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "offset": lambda x: torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(x.shape),
    "expanded-batch": lambda x: x[:1].expand(x.shape),
    "expanded-heads": lambda x: x[:, :1].expand(x.shape),
    "expanded-rows": lambda x: x.narrow(min(2, x.dim() - 1), 0, 1).expand(x.shape),
    "one-element": lambda x: x.flatten()[0].expand(x.shape),
}

SPECS = {
    "plain": Spec(),
    "all": Spec(key_heads=2, bias="1HLS", causal=True, window=(9, 4), alibi="BH", sinks="BH"),
    "three-dimensional": Spec(rank=3),
    "decoding": Spec(1, 2, queries=3, keys=130),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_gradients_of_both_outputs(spec: Spec, layout: Callable[[Tensor], Tensor]) -> None:
    problem = make_problem(spec, torch.float64)
    problem.grad_out, problem.grad_lse = layout(problem.grad_out), layout(problem.grad_lse)
    leaves = problem.leaves()
    out, lse = flash_attention.attention_with_lse(**leaves, **problem.options)
    values = torch.autograd.grad(
        (out, lse),
        [leaves[n] for n in problem.differentiable],
        (problem.grad_out, problem.grad_lse),
    )
    grads = {NAMES[n]: v for n, v in zip(problem.differentiable, values, strict=True)}
    assert_close_to_reference(Result(out.detach(), lse.detach(), grads), problem)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_backward_operator_accepts_any_layout(
    dtype: torch.dtype, spec: Spec, layout: Callable[[Tensor], Tensor]
) -> None:
    """Also for the saved tensors: bitwise equal to contiguous ones."""
    problem = make_problem(spec, dtype)
    options = {"bias": None, "query_positions": None, "alibi_slopes": None, "sinks": None}
    options |= problem.options | {n: t for n, t in problem.inputs.items() if n in options}
    names = ("query", "key", "value", "bias", "alibi_slopes", "sinks")
    needed = [n in problem.differentiable for n in names]
    inputs = [problem.inputs[n] for n in ("query", "key", "value")]
    out, row_stats, seed = torch.ops.flash._forward(*inputs, **options)
    grads = (layout(problem.grad_out), layout(problem.grad_lse))
    # Its first dimension holds the two statistics, so the layouts do not apply to it.
    stats = row_stats.mT.contiguous().mT

    def backward(change: Callable[[Tensor], Tensor], out: Tensor, stats: Tensor) -> list[Tensor]:
        return torch.ops.flash._backward(
            change(grads[0]), change(grads[1]), *inputs, out, stats, seed, **options, needed=needed
        )

    found = backward(lambda x: x, layout(out), stats)
    expected = backward(Tensor.contiguous, layout(out).contiguous(), row_stats)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_gradients_of_packed_sequences(layout: Callable[[Tensor], Tensor]) -> None:
    shapes = ((9, 4, 8), (11, 2, 8), (11, 4, 6))
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    cuts = (torch.tensor([0, 4, 9]), torch.tensor([0, 5, 11]))
    out = flash_attention.varlen_attention(*leaves, *cuts, causal=True)
    gradient = layout(torch.randn(out.shape, dtype=torch.float64))
    found = torch.autograd.grad(out, leaves, gradient, retain_graph=True)
    expected = torch.autograd.grad(out, leaves, gradient.contiguous())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_second_derivatives(layout: Callable[[Tensor], Tensor]) -> None:
    """Derivatives with respect to the output gradient, too."""
    problem = make_problem(Spec(2, 2, queries=5, keys=7, head_dim=3, value_dim=4), torch.float64)

    def slopes(operator: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = list(problem.leaves().values())
        grad_out = change(problem.grad_out).requires_grad_()
        first = torch.autograd.grad(operator(*leaves), leaves, grad_out, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), [*leaves, grad_out])

    found = slopes(flash_attention.attention, layout)
    expected = slopes(flash_attention.standard_attention, lambda x: layout(x).contiguous())
    for one, other in zip(found, expected, strict=True):
        # Sums of a hundred terms of order 10.
        torch.testing.assert_close(one, other, rtol=0, atol=100 * CLOSE[torch.float64])
