"""torch.compile and torch.export: one graph, dynamic shapes, and random dropout."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import flash_attention
import pytest
import torch
from flash_attention import _compile
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._functorch import compile_utils

from support.checks import largest_difference
from support.problems import Spec, make_problem
from support.tolerances import CLOSE

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Isolates each test from graphs compiled by others."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., Tensor], dynamic: bool | None = None) -> Callable[..., Tensor]:
    """`function` through AOTAutograd in one graph; no C++ compiler is involved."""
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)


SPECS = {
    "plain": Spec(),
    "causal": Spec(causal=True),
    "bias": Spec(bias="1H1S"),
    "mask": Spec(mask="B11S"),
    "positions": Spec(causal=True, positions="L"),
    "grouped": Spec(key_heads=2, value_heads=1),
    "transposed": Spec(layout="transposed"),
    "last-dim-strided": Spec(layout="last-dim-strided"),
    "three-dimensional": Spec(rank=3),
    "dropout": Spec(dropout=0.4),
    "window": Spec(window=(5, 2)),
    "alibi": Spec(alibi="BH"),
    "softcap": Spec(softcap=2.0),
    "sinks": Spec(sinks="H"),
    "all-of-these": Spec(window=(5, 2), alibi="H", softcap=2.0, sinks="H", dropout=0.4),
}


# The graph is that of any dtype, and test_meta_results.py has the dtypes of its results; so each of
# the next two tests traces one dtype.
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_compiled_autograd_matches_eager(spec: Spec) -> None:
    problem = make_problem(spec, torch.float64)

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        leaves = problem.leaves()
        out, lse = torch.ops.flash.attention_with_lse(**leaves, **problem.options)
        lse = lse.masked_fill(lse == -torch.inf, 0.0)  # fully masked rows
        ((out * problem.grad_out).sum() + (lse * problem.grad_lse).sum()).backward()
        return [leaves[n].grad for n in problem.differentiable]

    eager = gradients()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        traced = gradients()
    for expected, grad in zip(eager, traced, strict=True):
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_compiled_matches_eager(spec: Spec) -> None:
    problem = make_problem(spec, torch.float32)

    def step(**inputs: Tensor) -> Tensor:
        out, lse = torch.ops.flash.attention_with_lse(**inputs, **problem.options)
        lse = lse.masked_fill(lse == -torch.inf, 0.0)  # fully masked rows
        return (out * problem.grad_out).sum() + (lse * problem.grad_lse).sum()

    results = []
    for call in (step, compiled(step)):
        torch.manual_seed(0)
        leaves = problem.leaves()
        loss = call(**leaves)
        inputs = [leaves[n] for n in problem.differentiable]
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for eager, traced in zip(*results, strict=True):
        assert (
            largest_difference(traced, eager) <= 100 * CLOSE[torch.float32]
        )  # sums of 1824 elements


def test_dynamic_shapes_compile_once() -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        calls.append(graph)
        return graph.forward

    function = torch.compile(
        lambda q, k, v: flash_attention.attention(q, k, v, causal=True),
        backend=backend,
        fullgraph=True,
        dynamic=True,
    )
    for batch, queries, keys in ((2, 9, 20), (3, 14, 33), (5, 40, 41)):
        spec = Spec(batch, 4, queries=queries, keys=keys)
        inputs = make_problem(spec, torch.float32).inputs
        expected = flash_attention.attention(**inputs, causal=True)
        assert torch.equal(function(*inputs.values()), expected)
    assert len(calls) == 1


def test_dynamic_shapes_with_gradients() -> None:
    function = compiled(lambda q, k, v, b: flash_attention.attention(q, k, v, bias=b), dynamic=True)
    for queries, keys in ((9, 20), (14, 33), (40, 25)):
        problem = make_problem(Spec(queries=queries, keys=keys, bias="1H1S"), torch.float64)
        grads = []
        for call in (function, lambda q, k, v, b: flash_attention.attention(q, k, v, bias=b)):
            leaves = list(problem.leaves().values())
            grads.append(torch.autograd.grad(call(*leaves), leaves, problem.grad_out))
        for traced, eager in zip(*grads, strict=True):
            assert largest_difference(traced, eager) < CLOSE[torch.float64]


def test_dynamic_shapes_with_window_slopes_and_sinks() -> None:
    def call(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, sinks: Tensor) -> Tensor:
        return flash_attention.attention(
            query, key, value, window=(7, 1), alibi_slopes=slopes, softcap=3.0, sinks=sinks
        )

    function = compiled(call, dynamic=True)
    for queries, keys in ((9, 20), (14, 33), (40, 25)):
        spec = Spec(queries=queries, keys=keys, alibi="H", sinks="H")
        problem = make_problem(spec, torch.float64)
        grads = []
        for each in (function, call):
            leaves = list(problem.leaves().values())
            grads.append(torch.autograd.grad(each(*leaves), leaves, problem.grad_out))
        for traced, eager in zip(*grads, strict=True):
            assert largest_difference(traced, eager) < CLOSE[torch.float64]


def test_compiled_dropout_draws_a_new_mask_per_call() -> None:
    inputs = list(make_problem(Spec(), torch.float32).inputs.values())

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention.attention(q, k, v, dropout=0.5)

    traced = compiled(function)
    torch.manual_seed(1)
    first, second = traced(*inputs), traced(*inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(first, function(*inputs)) and torch.equal(second, function(*inputs))


def test_compiled_dropout_mask_is_the_same_in_forward_and_backward() -> None:
    problem = make_problem(Spec(dropout=0.5), torch.float64)
    traced = compiled(lambda q, k, v: flash_attention.attention(q, k, v, dropout=0.5))
    torch.manual_seed(2)
    leaves = list(problem.leaves().values())
    grads = torch.autograd.grad(traced(*leaves), leaves, problem.grad_out)
    torch.manual_seed(2)
    out = flash_attention.attention(*leaves, dropout=0.5)
    for traced_grad, eager_grad in zip(
        grads, torch.autograd.grad(out, leaves, problem.grad_out), strict=True
    ):
        assert largest_difference(traced_grad, eager_grad) < CLOSE[torch.float64]


STARTS = torch.tensor([0, 3, 9])

CALLS_WITH_DROPOUT: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: flash_attention.attention(x, x, x, dropout=0.5),
    "packed": lambda x: flash_attention.varlen_attention(x, x, x, STARTS, STARTS, dropout=0.5),
    "mask": lambda x: x + flash_attention.dropout_mask(1, 1, *x.shape[1:], 0.5),
}


@pytest.mark.parametrize("call", CALLS_WITH_DROPOUT.values(), ids=CALLS_WITH_DROPOUT.keys())
def test_two_calls_with_dropout_are_not_merged(call: Callable[[Tensor], Tensor]) -> None:
    """Common-subexpression elimination must not merge calls that draw random numbers."""
    first, second = compiled(lambda x: (call(x), call(x)))(torch.randn(9, 4, 8))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("call", CALLS_WITH_DROPOUT.values(), ids=CALLS_WITH_DROPOUT.keys())
def test_two_calls_with_dropout_and_gradients_are_those_of_eager(
    call: Callable[[Tensor], Tensor],
) -> None:
    """A graph with gradients has a common-subexpression elimination of its own."""

    def difference(x: Tensor) -> Tensor:
        return call(x) - 2 * call(x)

    x = torch.randn(9, 4, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (difference, compiled(difference)):
        torch.manual_seed(4)
        out = function(x)
        weights = torch.linspace(0, 1, 8, dtype=x.dtype).expand_as(out)
        results.append([out, *torch.autograd.grad(out, x, weights)])
    for eager, traced in zip(*results, strict=True):
        assert largest_difference(traced, eager) < CLOSE[torch.float64]


def test_operators_that_draw_a_seed_are_added_to_a_compiler_that_is_loaded_already() -> None:
    listed = compile_utils.rand_ops
    mine = {getattr(torch.ops.flash, name) for name in DRAWING}
    assert mine <= set(listed)
    before = list(listed)
    listed[:] = [op for op in listed if op not in mine]
    _compile.keep_random_calls_apart()
    assert set(listed) == set(before) and len(listed) == len(before)


def test_operators_that_draw_a_seed_are_added_to_a_compiler_that_was_only_searched_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._functorch, "compile_utils", compile_utils)  # the import sets it
    monkeypatch.delitem(sys.modules, _compile.MODULE)
    before = list(sys.meta_path)
    _compile.keep_random_calls_apart()
    assert importlib.util.find_spec(_compile.MODULE) is not None
    again = importlib.import_module(_compile.MODULE)
    assert again is not compile_utils
    assert {getattr(torch.ops.flash, name) for name in DRAWING} <= set(again.rand_ops)
    assert sys.meta_path == before, "the finder removes itself"


DRAWING = ("attention", "attention_with_lse", "_forward")
DRAWING += ("varlen_attention", "_varlen_forward", "dropout_mask")


@pytest.mark.parametrize(
    ("name", "draws"),
    [*((n, True) for n in DRAWING), ("_backward", False), ("_varlen_backward", False)],
)
def test_operators_that_draw_a_seed_are_tagged_nondeterministic(name: str, draws: bool) -> None:
    """The tag tells torch to keep their order and not to fold or reuse their results."""
    tags = getattr(torch.ops.flash, name).default.tags
    assert (torch.Tag.nondeterministic_seeded in tags) == draws


class SelfAttention(torch.nn.Module):
    """A typical exported module: projection, attention, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(12, 36)
        self.merge = torch.nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (3, 4)).mT for t in self.project(x).chunk(3, -1))
        q, k, v = (t.mT.transpose(1, 2) for t in (q, k, v))
        out = flash_attention.attention(q, k, v, causal=True)
        return self.merge(out.transpose(1, 2).flatten(2))


def test_export_with_dynamic_shapes() -> None:
    module = SelfAttention()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
    exported = torch.export.export(
        module, (torch.randn(2, 7, 12),), dynamic_shapes=({0: batch, 1: length},)
    )
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets.count("flash.attention.default") == 1
    for shape in ((2, 7, 12), (5, 30, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported.module()(x), module(x))


class CausalWithBias(torch.nn.Module):
    """The operator with another operation after it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return 2 * flash_attention.attention(query, key, value, bias=bias, causal=True)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_ahead_of_time_compilation(tmp_path: Path) -> None:
    """AOTInductor: a shared library of the exported program, with a dynamic batch size."""
    batch = torch.export.Dim("batch", min=1, max=64)
    each = {0: batch}

    def inputs(n: int) -> list[Tensor]:
        return [*(torch.randn(n, 4, 9, 8) for _ in range(3)), torch.randn(9, 9)]

    exported = torch.export.export(
        CausalWithBias(), tuple(inputs(2)), dynamic_shapes=(each, each, each, None)
    )
    path = str(tmp_path / "attention.pt2")
    torch._inductor.aoti_compile_and_package(exported, package_path=path)
    ahead = torch._inductor.aoti_load_package(path)
    for n in (2, 5):
        given = inputs(n)
        torch.testing.assert_close(ahead(*given), CausalWithBias()(*given))


def test_compiled_module_trains_like_eager() -> None:
    torch.manual_seed(3)
    eager = SelfAttention()
    traced = SelfAttention()
    traced.load_state_dict(eager.state_dict())
    x = torch.randn(4, 10, 12)
    for model, call in ((eager, eager), (traced, compiled(traced))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (call(x) - x).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(traced.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_standard_attention_compiles_with_dropout() -> None:
    problem = make_problem(Spec(dropout=0.4), torch.float64)
    call = functools.partial(flash_attention.standard_attention, dropout=0.4)
    results = []
    for function in (call, compiled(call)):
        torch.manual_seed(0)
        results.append(function(**problem.inputs))
    torch.testing.assert_close(*results, rtol=0, atol=CLOSE[torch.float64])
