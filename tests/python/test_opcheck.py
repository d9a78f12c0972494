"""torch.library.opcheck, with all of its test utilities, on every option."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES, Spec, dtype_name, make_problem, single_variants

SINGLES = single_variants()
OPS = ["attention", "attention_with_lse"]


@pytest.mark.parametrize("differentiable", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("spec", SINGLES.values(), ids=SINGLES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, dtype: torch.dtype, spec: Spec, differentiable: bool) -> None:
    problem = make_problem(spec, dtype)
    if not differentiable:
        problem.differentiable = ()
    leaves = problem.leaves()
    positional = tuple(leaves.pop(name) for name in ("query", "key", "value"))
    overload = getattr(torch.ops.flash, op).default
    results = torch.library.opcheck(overload, positional, {**leaves, **problem.options})
    assert set(results.values()) == {"SUCCESS"}
