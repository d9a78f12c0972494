"""The truth of these tests against torch's own math path, where torch offers the option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checks import largest_difference
from problems import Problem, Spec, make_problem
from reference import definition, differentiate
from tolerances import FLOAT64_ABSOLUTE
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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
def test_the_definition_is_what_torch_computes(spec: Spec) -> None:
    problem = make_problem(spec, torch.float64)
    problem.grad_lse = torch.zeros_like(problem.grad_lse)

    def call(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores = (leaves["query"] * 0).sum(-1)  # torch has no lse: one that gives no gradient
        return torch_math(problem, leaves), scores

    expected = differentiate(call, problem, torch.float64)
    actual = definition(problem, torch.float64)
    assert largest_difference(actual.out, expected.out) < FLOAT64_ABSOLUTE
    for name, grad in expected.grads.items():
        assert largest_difference(actual.grads[name], grad) < FLOAT64_ABSOLUTE, name


def test_lse_is_the_logarithm_of_the_sum_of_exponentials() -> None:
    problem = make_problem(Spec(rank=3, scale=1.0, bias="LS"), torch.float64)
    query, key = problem.inputs["query"], problem.inputs["key"]
    scores = query @ key.mT + problem.inputs["bias"]
    lse = definition(problem, torch.float64).lse
    assert largest_difference(lse, torch.logsumexp(scores, -1)) < FLOAT64_ABSOLUTE
