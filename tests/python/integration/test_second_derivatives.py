"""Second derivatives and forward mode over several blocks of rows, and their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flash_attention
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from support.measuring import peak_beyond_result, threads
from support.problems import Problem, Spec, make_problem
from support.tolerances import CLOSE, SECOND_FLOAT64_RELATIVE

# Second derivatives process 64 queries at a time.
LONG = Spec(queries=130, keys=70, head_dim=6, value_dim=5)
SPECS = {
    "plain": LONG,
    "fewer queries than a block": replace(LONG, queries=5),
    "exactly a block": replace(LONG, queries=64),
    "one query": replace(LONG, queries=1),
    "one key": replace(LONG, keys=1),
    "no queries": replace(LONG, queries=0),
    "no keys": replace(LONG, keys=0),
    "bias-BHLS-causal": replace(LONG, bias="BHLS", causal=True),
    "bias-1HL1-groups": replace(LONG, bias="1HL1", key_heads=2, value_heads=1),
    "bias-S-dropout": replace(LONG, bias="S", dropout=0.3),
    "mask-LS-positions": replace(LONG, mask="LS", positions="BHL", causal=True),
    "window-alibi": replace(LONG, window=(30, 4), alibi="BH"),
    "softcap-sinks-causal": replace(LONG, softcap=1.5, sinks="H", causal=True),
    "all of them": replace(
        LONG, bias="HLS", window=(40, 0), alibi="H", softcap=2.0, sinks="H", dropout=0.2
    ),
    "three-dimensional": replace(LONG, rank=3, bias="BHLS", sinks="H", alibi="H"),
    "transposed": replace(LONG, layout="transposed"),
}

Attention = Callable[..., Tensor]


def call(problem: Problem, op: Attention) -> Callable[..., Tensor]:
    """`op` as a function of only the differentiable inputs."""
    fixed = {n: t for n, t in problem.inputs.items() if n not in problem.differentiable}
    options = dict(problem.options)
    if op is flash_attention.standard_attention:
        for name in ("block_size", "use_simd"):
            options.pop(name)

    def of(*tensors: Tensor) -> Tensor:
        torch.manual_seed(problem.seed)  # the same dropout mask every time
        return op(**dict(zip(problem.differentiable, tensors, strict=True)), **fixed, **options)

    return of


def differentiable(problem: Problem) -> list[Tensor]:
    leaves = problem.leaves()
    return [leaves[name] for name in problem.differentiable]


def assert_close(found: list[Tensor], expected: list[Tensor], names: tuple[str, ...]) -> None:
    for name, one, truth in zip(names, found, expected, strict=True):
        assert one.shape == truth.shape, name
        if truth.numel():
            size = max(1.0, truth.abs().max().item())
            assert (one - truth).abs().max().item() <= SECOND_FLOAT64_RELATIVE * size, name


def check_against_standard(
    spec: Spec, compute: Callable[[Callable[..., Tensor], Problem], list[Tensor]]
) -> None:
    """Checks that `compute` gives the same for the operator and for standard attention."""
    problem = make_problem(spec, torch.float64)
    found = compute(call(problem, flash_attention.attention), problem)
    expected = compute(call(problem, flash_attention.standard_attention), problem)
    names = problem.differentiable * (len(found) // len(problem.differentiable)) + ("grad_out",)
    assert_close(found, expected, names[: len(found)])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_gradients_of_gradients(spec: Spec) -> None:
    def compute(of: Callable[..., Tensor], problem: Problem) -> list[Tensor]:
        inputs = differentiable(problem)
        grad_out = problem.grad_out.clone().requires_grad_()
        first = torch.autograd.grad(of(*inputs), inputs, grad_out, create_graph=True)
        generator = torch.Generator().manual_seed(1)
        penalty = sum(
            (g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum() for g in first
        )
        by = [*inputs, grad_out]
        second = torch.autograd.grad(penalty, by, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(by, second, strict=True)]
        return [g.detach() for g in first] + filled

    check_against_standard(spec, compute)


def directions(problem: Problem) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(
        torch.randn(problem.inputs[name].shape, generator=generator, dtype=torch.float64)
        for name in problem.differentiable
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_jvp(spec: Spec) -> None:
    def compute(of: Callable[..., Tensor], problem: Problem) -> list[Tensor]:
        inputs = tuple(x.detach() for x in differentiable(problem))
        return list(torch.func.jvp(of, inputs, directions(problem)))

    problem = make_problem(spec, torch.float64)
    found = compute(call(problem, flash_attention.attention), problem)
    expected = compute(call(problem, flash_attention.standard_attention), problem)
    assert_close(found, expected, ("out", "tangent"))


WITH_DERIVATIVES = ("plain", "bias-BHLS-causal", "softcap-sinks-causal", "all of them")


@pytest.mark.parametrize("name", WITH_DERIVATIVES)
def test_forward_over_reverse(name: str) -> None:
    def compute(of: Callable[..., Tensor], problem: Problem) -> list[Tensor]:
        inputs = tuple(x.detach() for x in differentiable(problem))
        every = tuple(range(len(inputs)))
        gradient = torch.func.grad(lambda *x: of(*x).square().sum(), argnums=every)
        first, tangents = torch.func.jvp(gradient, inputs, directions(problem))
        return [*first, *tangents]

    check_against_standard(SPECS[name], compute)


@pytest.mark.parametrize("name", WITH_DERIVATIVES)
def test_reverse_over_forward(name: str) -> None:
    def compute(of: Callable[..., Tensor], problem: Problem) -> list[Tensor]:
        inputs = tuple(x.detach() for x in differentiable(problem))
        every = tuple(range(len(inputs)))

        def change(*x: Tensor) -> Tensor:
            return torch.func.jvp(of, x, directions(problem))[1].square().sum()

        return list(torch.func.grad(change, argnums=every)(*inputs))

    check_against_standard(SPECS[name], compute)


@pytest.mark.parametrize("name", WITH_DERIVATIVES)
def test_reverse_over_reverse_of_functions(name: str) -> None:
    """torch.func.grad of torch.func.grad, where the cotangent depends on the output."""

    def compute(of: Callable[..., Tensor], problem: Problem) -> list[Tensor]:
        inputs = tuple(x.detach() for x in differentiable(problem))
        every = tuple(range(len(inputs)))

        def penalty(*x: Tensor) -> Tensor:
            first = torch.func.grad(lambda *y: of(*y).square().sum(), argnums=every)(*x)
            return sum(g.square().sum() for g in first)

        return list(torch.func.grad(penalty, argnums=every)(*inputs))

    check_against_standard(SPECS[name], compute)


@pytest.mark.parametrize("output", [0, 1], ids=["out", "lse"])
@pytest.mark.parametrize("name", WITH_DERIVATIVES)
def test_forward_mode_over_the_output_gradient(name: str, output: int) -> None:
    """Gradients are linear in the output gradient: a tangent of it gives the gradients for it."""
    problem = make_problem(SPECS[name], torch.float64)
    inputs = differentiable(problem)
    result = call(problem, flash_attention.attention_with_lse)(*inputs)[output]
    cotangent = (problem.grad_out, problem.grad_lse)[output]
    generator = torch.Generator().manual_seed(3)
    tangent = torch.randn(cotangent.shape, generator=generator, dtype=torch.float64)

    def gradients(of: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, of, create_graph=True)

    with forward_ad.dual_level():
        grads = gradients(forward_ad.make_dual(cotangent, tangent))
        duals = [forward_ad.unpack_dual(g) for g in grads]
    found = [torch.zeros_like(g) if t is None else t for g, t in duals]  # lse ignores value
    assert_close(found, list(gradients(tangent)), problem.differentiable)


def test_double_backward_releases_its_saved_tensors() -> None:
    query, key, value = differentiable(make_problem(LONG, torch.float64))
    out = flash_attention.attention(query, key, value)
    (first,) = torch.autograd.grad(out, query, torch.randn_like(out), create_graph=True)
    cotangent = torch.randn_like(first)
    (retained,) = torch.autograd.grad(first, key, cotangent, retain_graph=True)
    (second,) = torch.autograd.grad(first, key, cotangent)
    assert torch.equal(retained, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(first, key, cotangent)


@pytest.mark.parametrize("transform", ["jacrev", "jacfwd"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_hessian(causal: bool, transform: str) -> None:
    query, key, value = (torch.randn(1, 2, 3, 2, dtype=torch.float64) for _ in range(3))

    def hessians(op: Attention) -> Any:
        loss = lambda q, k, v: op(q, k, v, causal=causal).sin().sum()  # noqa: E731
        outer = getattr(torch.func, transform)
        inner = torch.func.jacrev(loss, argnums=(0, 1, 2))
        return outer(inner, argnums=(0, 1, 2))(query, key, value)

    found = hessians(flash_attention.attention)
    expected = hessians(flash_attention.standard_attention)
    for row, truths in zip(found, expected, strict=True):
        assert_close(list(row), list(truths), ("query", "key", "value"))


def test_derivatives_of_lse() -> None:
    problem = make_problem(replace(LONG, causal=True, sinks="H"), torch.float64)
    inputs = [x.detach() for x in differentiable(problem)]

    def lse(*x: Tensor) -> Tensor:
        named = dict(zip(problem.differentiable, x, strict=True))
        return flash_attention.attention_with_lse(**named, causal=True)[1]

    def defined(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Tensor:
        scores = query @ key.mT / query.size(-1) ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1 + key.size(-2) - query.size(-2))
        scores = scores.masked_fill(later, -torch.inf)
        sink = sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat((scores, sink), -1).logsumexp(-1)

    def derivatives(of: Callable[..., Tensor]) -> list[Tensor]:
        every = (0, 1, 3)
        first = torch.func.grad(lambda *x: of(*x).square().sum(), argnums=every)(*inputs)
        tangent = torch.func.jvp(of, tuple(inputs), directions(problem))[1]
        penalty = torch.func.grad(
            lambda *x: sum(
                g.square().sum()
                for g in torch.func.grad(lambda *y: of(*y).square().sum(), argnums=every)(*x)
            ),
            argnums=every,
        )
        return [*first, tangent, *penalty(*inputs)]

    found, expected = derivatives(lse), derivatives(defined)
    assert_close(found, expected, tuple(map(str, range(len(found)))))


def test_lse_without_keys_has_zero_derivatives() -> None:
    """lse is then the constant -inf."""
    query = torch.randn(1, 2, 3, 4, requires_grad=True)
    key, value = (torch.randn(1, 2, 0, n, requires_grad=True) for n in (4, 5))
    results = flash_attention.attention_with_lse(query, key, value)
    cotangents = [torch.randn_like(x).requires_grad_() for x in results]
    first = torch.autograd.grad(results, (query, key, value), cotangents, create_graph=True)
    inputs = (query, key, value, *cotangents)
    second = torch.autograd.grad(
        first, inputs, [torch.ones_like(x) for x in first], allow_unused=True
    )
    assert all(x is None or not x.any() for x in second)


def peak_of_second(queries: int, keys: int) -> int:
    query, key, value = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (queries, keys, keys))
    out = flash_attention.attention(query, key, value)
    first = torch.autograd.grad(out.sum(), (query, key, value), create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    return peak_beyond_result(
        lambda: torch.autograd.grad(penalty, (query, key, value), retain_graph=True)
    )


def test_second_derivatives_need_no_score_matrix() -> None:
    """Memory grows only by the rows of the queries and keys."""
    few, many = peak_of_second(1024, 1024), peak_of_second(4096, 4096)
    matrix = 2 * 4096 * 4096 * 4
    rows = 2 * 3 * (4096 - 1024) * 8 * 4
    assert many - few < 6 * rows  # inputs, outputs and sums of three tensors
    assert many < matrix / 2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bitwise_equal_from_run_to_run(dropout: float) -> None:
    """For a fixed thread count: torch's matrix products depend on it."""
    spec = replace(LONG, queries=400, keys=300, dropout=dropout, causal=True)
    problem = make_problem(spec, torch.float32)
    of = call(problem, flash_attention.attention)

    def second() -> list[Tensor]:
        inputs = differentiable(problem)
        first = torch.autograd.grad(of(*inputs).square().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))

    with threads(1):
        alone = second()
    for count in (1, 2, 3, 8):
        with threads(count):
            expected = second()
            for _ in range(3):
                for found, once in zip(second(), expected, strict=True):
                    assert torch.equal(found, once), count
        for found, once in zip(expected, alone, strict=True):
            size = once.abs().max().item()
            assert (found - once).abs().max().item() <= CLOSE[torch.float32] * size, count
