"""The reference of these tests against torch's own attentions, for the options that torch has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from support.checks import largest_difference
from support.problems import Problem, Spec, make_problem
from support.reference import definition, differentiate
from support.tolerances import FLOAT64_ABSOLUTE

pytestmark = pytest.mark.once

PLAIN = Spec(queries=33, keys=33)

SPECS = {
    "plain": PLAIN,
    "causal": replace(PLAIN, causal=True),
    "bias": replace(PLAIN, bias="BHLS"),
    "bias-broadcast": replace(PLAIN, bias="1H1S"),
    "mask": replace(PLAIN, mask="BHLS"),
    "scale": replace(PLAIN, scale=-0.7),
    "grouped-heads": replace(PLAIN, key_heads=2, value_heads=2),
    "three-dimensional": replace(PLAIN, rank=3),
    "other-lengths": Spec(queries=7, keys=40, value_dim=3),
}


def torch_math(problem: Problem, leaves: dict[str, Tensor]) -> Tensor:
    mask = leaves.get("bias")
    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(
            leaves["query"],
            leaves["key"],
            leaves["value"],
            attn_mask=mask,
            is_causal=problem.options["causal"],
            scale=problem.options["scale"],
            enable_gqa=problem.spec.key_heads is not None,
        )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_definition_matches_torch(spec: Spec) -> None:
    problem = make_problem(spec, torch.float64)
    problem.grad_lse = torch.zeros_like(problem.grad_lse)

    def call(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores = (leaves["query"] * 0).sum(-1)  # torch gives no lse: a zero with zero gradients
        return torch_math(problem, leaves), scores

    expected = differentiate(call, problem, torch.float64)
    actual = definition(problem, torch.float64)
    assert largest_difference(actual.out, expected.out) < FLOAT64_ABSOLUTE
    for name, grad in expected.grads.items():
        assert largest_difference(actual.grads[name], grad) < FLOAT64_ABSOLUTE, name


FLEXIBLE = {
    "window": replace(PLAIN, window=(6, 2)),
    "window-left": replace(PLAIN, window=(6, -1)),
    "window-right": replace(PLAIN, window=(-1, 2)),
    "window-causal": replace(PLAIN, window=(6, 2), causal=True),
    "alibi": replace(PLAIN, alibi="H"),
    "alibi-batch": replace(PLAIN, alibi="BH"),
    "softcap": replace(PLAIN, softcap=1.5),
    "all": replace(PLAIN, window=(6, 2), alibi="BH", softcap=1.5),
    "other-lengths": Spec(queries=19, keys=33, window=(6, 2), alibi="BH", softcap=1.5),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("spec", FLEXIBLE.values(), ids=FLEXIBLE.keys())
def test_definition_matches_flex_attention(spec: Spec) -> None:
    """torch's attention with a score_mod function; it has no backward on the CPU."""
    problem = make_problem(spec, torch.float64)
    left, right = spec.window or (-1, -1)
    slopes = problem.inputs.get("alibi_slopes")
    if slopes is not None:
        slopes = slopes.expand(spec.batch, spec.heads)

    def change(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = key - query - (spec.keys - spec.queries)
        if spec.softcap > 0:
            score = spec.softcap * torch.tanh(score / spec.softcap)
        if slopes is not None:
            score = score - slopes[b, h] * distance.abs()
        if left >= 0:
            score = torch.where(distance >= -left, score, -torch.inf)
        if right >= 0:
            score = torch.where(distance <= right, score, -torch.inf)
        return torch.where(distance <= 0, score, -torch.inf) if spec.causal else score

    # Without this, a scalar of `change` that differs between tests becomes a symbol, which torch
    # 2.15 does not support here.
    torch.compiler.reset()
    tensors = (problem.inputs[name] for name in ("query", "key", "value"))
    out, aux = flex_attention(*tensors, score_mod=change, return_aux=AuxRequest(lse=True))
    actual = definition(problem, torch.float64)
    assert largest_difference(actual.out, out) < FLOAT64_ABSOLUTE
    assert largest_difference(actual.lse, aux.lse) < FLOAT64_ABSOLUTE


@pytest.mark.parametrize("window", [None, (6, 2)], ids=str)
def test_sink_is_a_key_with_a_zero_value(window: tuple[int, int] | None) -> None:
    """An extra zero key with a zero value, and the sink as its bias."""
    spec = replace(PLAIN, sinks="H", window=window)
    problem = make_problem(spec, torch.float64)
    problem.grad_lse = torch.zeros_like(problem.grad_lse)
    distance = torch.arange(33) - torch.arange(33).unsqueeze(-1)
    outside = torch.zeros(33, 33, dtype=torch.float64)
    if window is not None:
        outside = outside.masked_fill((distance < -window[0]) | (distance > window[1]), -torch.inf)

    def call(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        query, key, value = (leaves[n] for n in ("query", "key", "value"))
        key, value = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (key, value))
        column = leaves["sinks"].view(-1, 1, 1).expand(-1, 33, 1)
        bias = torch.cat([outside.expand(spec.heads, -1, -1), column], -1)
        with sdpa_kernel(SDPBackend.MATH):
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias
            )
        return out, (query * 0).sum(-1)

    expected = differentiate(call, problem, torch.float64)
    actual = definition(problem, torch.float64)
    assert largest_difference(actual.out, expected.out) < FLOAT64_ABSOLUTE
    for name, grad in expected.grads.items():
        assert largest_difference(actual.grads[name], grad) < FLOAT64_ABSOLUTE, name


def test_lse_matches_logsumexp() -> None:
    problem = make_problem(Spec(rank=3, scale=1.0, bias="LS"), torch.float64)
    query, key = problem.inputs["query"], problem.inputs["key"]
    scores = query @ key.mT + problem.inputs["bias"]
    lse = definition(problem, torch.float64).lse
    assert largest_difference(lse, torch.logsumexp(scores, -1)) < FLOAT64_ABSOLUTE
