"""torch.autograd.gradcheck and gradgradcheck in float64, for every option, through out and lse."""

from __future__ import annotations

from dataclasses import replace

import flash_attention
import pytest
import torch
from torch import Tensor

from support.problems import VARIANTS, Problem, Spec, make_problem

# Several heads, queries, keys and blocks, but few enough elements that the numerical Jacobian (two
# calls per input element) stays cheap.
TINY = Spec(batch=1, heads=2, queries=3, keys=5, head_dim=2, value_dim=3, block_size=2)


def tiny_specs() -> dict[str, Spec]:
    specs = {"plain": TINY}
    for group in VARIANTS.values():
        for name, changes in group.items():
            if name in ("kv-heads-2x4", "kv-heads-4x1", "kv-heads-1x2"):
                continue  # added below with four heads
            specs[name] = replace(TINY, **changes)
    four = replace(TINY, heads=4, queries=2, keys=3)
    for name in ("kv-heads-2x4", "kv-heads-4x1", "kv-heads-1x2"):
        specs[name] = replace(four, **VARIANTS["heads"][name])
    # The lengths of this variant would make the Jacobian large, so smaller ones replace them.
    specs["more-queries"] = replace(TINY, queries=5, keys=3, causal=True)
    return specs


SPECS = tiny_specs()
COMBINED = {
    "plain": SPECS["plain"],
    "mask-positions": replace(TINY, mask="BHLS", positions="L", causal=True),
    "bias-dropout-groups": replace(
        TINY, heads=4, key_heads=2, value_heads=1, bias="LS", dropout=0.3
    ),
    "score-options": replace(TINY, window=(2, 1), alibi="BH", softcap=1.5, sinks="H"),
    "three-dimensional": replace(TINY, rank=3, bias="S", causal=True),
}


def differentiable_call(problem: Problem, with_lse: bool) -> tuple[object, list[Tensor]]:
    """A function of only the differentiable inputs, and those inputs."""
    leaves = problem.leaves()
    fixed = {n: t for n, t in leaves.items() if n not in problem.differentiable}
    op = flash_attention.attention_with_lse if with_lse else flash_attention.attention

    def call(*tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        torch.manual_seed(problem.seed)  # the same dropout mask in every evaluation
        named = dict(zip(problem.differentiable, tensors, strict=True))
        result = op(**named, **fixed, **problem.options)
        if not with_lse:
            return result
        out, lse = result
        # The lse of a fully masked row is -inf: its derivative is 0, but numerically NaN.
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    return call, [leaves[name] for name in problem.differentiable]


def separate(inputs: list[Tensor]) -> list[Tensor]:
    """Elements of an expanded leaf share memory, so gradcheck cannot perturb them one by one."""
    return [x.detach().clone().requires_grad_() if 0 in x.stride() else x for x in inputs]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_gradcheck(spec: Spec) -> None:
    call, inputs = differentiable_call(make_problem(spec, torch.float64), True)
    assert torch.autograd.gradcheck(call, separate(inputs))


# Without lse, the same kernels run behind another operator.
@pytest.mark.once
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_gradcheck_without_lse(spec: Spec) -> None:
    call, inputs = differentiable_call(make_problem(spec, torch.float64), False)
    assert torch.autograd.gradcheck(call, separate(inputs))


@pytest.mark.parametrize("only", ["query", "key", "value", "bias", "alibi_slopes", "sinks"])
def test_gradcheck_of_a_single_input(only: str) -> None:
    spec = replace(TINY, bias="1HLS", causal=True, alibi="BH", softcap=1.5, sinks="H")
    problem = make_problem(spec, torch.float64)
    problem.differentiable = (only,)
    call, inputs = differentiable_call(problem, True)
    assert torch.autograd.gradcheck(call, inputs)


def test_gradcheck_of_lse_only() -> None:
    problem = make_problem(replace(TINY, bias="1HLS"), torch.float64)
    call, inputs = differentiable_call(problem, True)
    value = problem.differentiable.index("value")
    inputs[value].requires_grad_(False)
    assert torch.autograd.gradcheck(lambda *x: call(*x)[1], inputs)


@pytest.mark.once
@pytest.mark.parametrize(
    "spec",
    [
        SPECS["plain"],
        SPECS["bias-LS"],
        SPECS["causal"],
        replace(TINY, window=(2, 1), alibi="H", softcap=1.5, sinks="H"),
    ],
    ids=["plain", "bias", "causal", "window-alibi-softcap-sinks"],
)
def test_standard_attention_has_second_derivatives(spec: Spec) -> None:
    problem = make_problem(spec, torch.float64)
    leaves = problem.leaves()

    def call(*tensors: Tensor) -> Tensor:
        named = dict(zip(problem.differentiable, tensors, strict=True))
        return flash_attention.standard_attention(
            **named, causal=spec.causal, window=spec.window, softcap=spec.softcap
        )

    inputs = [leaves[n] for n in problem.differentiable]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


# Second derivatives are made of torch's operators and of the backward that test_gradcheck runs on
# each instruction set; test_second_derivatives.py compares their values on each.
@pytest.mark.once
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_gradgradcheck(spec: Spec) -> None:
    call, inputs = differentiable_call(make_problem(spec, torch.float64), True)
    assert torch.autograd.gradgradcheck(call, separate(inputs))


@pytest.mark.once
@pytest.mark.parametrize("spec", COMBINED.values(), ids=COMBINED.keys())
def test_gradgradcheck_without_lse(spec: Spec) -> None:
    call, inputs = differentiable_call(make_problem(spec, torch.float64), False)
    assert torch.autograd.gradgradcheck(call, separate(inputs))


@pytest.mark.once
@pytest.mark.parametrize("spec", COMBINED.values(), ids=COMBINED.keys())
def test_forward_mode(spec: Spec) -> None:
    """Forward mode through the outputs and through the gradients."""
    call, inputs = differentiable_call(make_problem(spec, torch.float64), True)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        call, inputs, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
    )


@pytest.mark.parametrize("op", ["attention", "attention_with_lse"])
def test_third_derivatives_are_refused(op: str) -> None:
    leaves = make_problem(TINY, torch.float64).leaves()
    result = getattr(torch.ops.flash, op)(*leaves.values())
    out = result[0] if isinstance(result, tuple) else result
    (grad,) = torch.autograd.grad(out.square().sum(), leaves["query"], create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), leaves["key"], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"(?s)flash::attention.*standard_attention"):
        torch.autograd.grad(second.sum(), leaves["query"])


def test_create_graph_does_not_change_gradients() -> None:
    leaves = make_problem(TINY, torch.float64).leaves()
    out = flash_attention.attention(**leaves)
    with_graph = torch.autograd.grad(out.sum(), leaves["query"], create_graph=True)[0]
    without = torch.autograd.grad(flash_attention.attention(**leaves).sum(), leaves["query"])[0]
    assert torch.equal(with_graph.detach(), without)
