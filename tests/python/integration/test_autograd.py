"""Integration with autograd."""

from __future__ import annotations

import itertools

import flash_attention
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from support.checks import run
from support.problems import DTYPES, Spec, dtype_name, make_problem
from support.reference import NAMES
from support.tolerances import CLOSE

INPUTS = ["query", "key", "value", "bias"]
SUBSETS = [s for n in range(1, 5) for s in itertools.combinations(INPUTS, n)]


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_gradients_of_any_subset_of_inputs(dtype: torch.dtype, subset: tuple[str, ...]) -> None:
    """Requesting fewer gradients changes no bit of the requested ones."""
    everything = run(make_problem(Spec(bias="1H1S", causal=True), dtype))
    problem = make_problem(Spec(bias="1H1S", causal=True), dtype)
    problem.differentiable = subset
    some = run(problem)
    assert set(some.grads) == {NAMES[name] for name in subset}
    for name, grad in some.grads.items():
        assert torch.equal(grad, everything.grads[name]), name


@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "query_positions"])
def test_in_place_change_of_an_input_is_detected(name: str) -> None:
    """The backward reads the inputs again, so it must refuse inputs modified since the forward."""
    problem = make_problem(Spec(bias="LS", causal=True, positions="L"), torch.float32)
    leaves = problem.leaves()
    tensors = {**leaves, "query_positions": problem.options["query_positions"].clone()}
    out = flash_attention.attention(**tensors, causal=True)
    with torch.no_grad():
        tensors[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_in_place_change_of_the_output_is_detected() -> None:
    leaves = make_problem(Spec(), torch.float32).leaves()
    out = flash_attention.attention(**leaves)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_backward_needs_retain_graph() -> None:
    problem = make_problem(Spec(dropout=0.3), torch.float64)
    leaves = list(problem.leaves().values())
    out = flash_attention.attention(*leaves, dropout=0.3)
    first = torch.autograd.grad(out, leaves, problem.grad_out, retain_graph=True)
    second = torch.autograd.grad(out, leaves, problem.grad_out)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, leaves, problem.grad_out)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
def test_checkpointing_gives_identical_gradients(reentrant: bool, dropout: float) -> None:
    problem = make_problem(Spec(causal=True), torch.float64)

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flash_attention.attention(q.sin(), k, v, causal=True, dropout=dropout)

    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(4)
        leaves = list(problem.leaves().values())
        if checkpointed:
            out = checkpoint(function, *leaves, use_reentrant=reentrant)
        else:
            out = function(*leaves)
        out.backward(problem.grad_out)
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_gradients_of_out_and_lse_add_up(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(bias="LS"), dtype)
    leaves = problem.leaves()
    out, lse = flash_attention.attention_with_lse(**leaves)
    inputs = list(leaves.values())
    both = torch.autograd.grad(
        (out, lse), inputs, (problem.grad_out, problem.grad_lse), retain_graph=True
    )
    of_out = torch.autograd.grad(out, inputs, problem.grad_out, retain_graph=True)
    of_lse = torch.autograd.grad(lse, inputs, problem.grad_lse, allow_unused=True)
    for total, a, b in zip(both, of_out, of_lse, strict=True):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(total, a + b, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_output_gradient_of_any_layout(dtype: torch.dtype) -> None:
    """Expanded (as from sum), transposed and strided gradients give the same as a copy."""
    problem = make_problem(Spec(), dtype)
    gradients = {
        "expanded": torch.ones((), dtype=dtype).expand_as(problem.grad_out),
        "transposed": problem.grad_out.transpose(1, 2).contiguous().transpose(1, 2),
        "column-major": problem.grad_out.mT.contiguous().mT,
        "strided": problem.grad_out.repeat_interleave(2, -1)[..., ::2],
        "negated": torch._neg_view(-problem.grad_out),
    }
    for name, gradient in gradients.items():
        problem.grad_out = gradient
        strided = run(problem)
        problem.grad_out = gradient.clone(memory_format=torch.contiguous_format)
        for key, tensor in run(problem).tensors().items():
            assert torch.equal(strided.tensors()[key], tensor), (name, key)


def test_no_graph_without_grad_mode() -> None:
    leaves = make_problem(Spec(), torch.float32).leaves()
    assert flash_attention.attention(**leaves).grad_fn is not None
    with torch.no_grad():
        assert flash_attention.attention(**leaves).grad_fn is None
    with torch.inference_mode():
        out = flash_attention.attention(**leaves)
    assert out.is_inference() and out.grad_fn is None
    detached = {name: leaf.detach() for name, leaf in leaves.items()}
    out, lse = flash_attention.attention_with_lse(**detached)
    assert not out.requires_grad and not lse.requires_grad


def test_integer_inputs_get_no_gradient() -> None:
    leaves = make_problem(Spec(mask="LS"), torch.float32).leaves()
    out = flash_attention.attention(**leaves, causal=True, query_positions=torch.arange(19))
    out.sum().backward()
    assert leaves["query"].grad is not None and leaves["bias"].grad is None


def test_same_tensor_as_query_key_and_value() -> None:
    """Self-attention without projections: the three gradients accumulate in one leaf."""
    x = torch.randn(2, 3, 20, 8, dtype=torch.float64, requires_grad=True)
    (together,) = torch.autograd.grad(flash_attention.attention(x, x, x).square().sum(), x)
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    apart = torch.autograd.grad(flash_attention.attention(*copies).square().sum(), copies)
    torch.testing.assert_close(together, sum(apart), rtol=0, atol=CLOSE[torch.float64])
