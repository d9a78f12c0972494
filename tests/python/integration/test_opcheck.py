"""torch.library.opcheck with all of its checks, on every option."""

from __future__ import annotations

import pytest
import torch

from support.problems import Spec, make_problem, single_variants

pytestmark = pytest.mark.once

SINGLES = single_variants()

# Every pair of values of operator, dtype and gradient, for every option: half of the eight
# combinations.
COVER = {
    "attention-float32-grad": ("attention", torch.float32, True),
    "attention-float64-no-grad": ("attention", torch.float64, False),
    "attention_with_lse-float32-no-grad": ("attention_with_lse", torch.float32, False),
    "attention_with_lse-float64-grad": ("attention_with_lse", torch.float64, True),
}


@pytest.mark.parametrize("spec", SINGLES.values(), ids=SINGLES.keys())
@pytest.mark.parametrize(("op", "dtype", "differentiable"), COVER.values(), ids=COVER.keys())
def test_opcheck(op: str, dtype: torch.dtype, spec: Spec, differentiable: bool) -> None:
    problem = make_problem(spec, dtype)
    if not differentiable:
        problem.differentiable = ()
    leaves = problem.leaves()
    positional = tuple(leaves.pop(name) for name in ("query", "key", "value"))
    overload = getattr(torch.ops.flash, op).default
    results = torch.library.opcheck(overload, positional, {**leaves, **problem.options})
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_of_the_dropout_mask() -> None:
    results = torch.library.opcheck(torch.ops.flash.dropout_mask.default, (2, 3, 5, 7, 0.5), {})
    assert set(results.values()) == {"SUCCESS"}
