"""400 of the fuzzer's cases; `make stress` runs 10,000."""

from __future__ import annotations

import pytest

from fuzz import fuzzing
from support.problems import DTYPES, Spec, make_problem

pytestmark = pytest.mark.once  # each case runs on every instruction set

CASES = 400
PER_TEST = 50


@pytest.mark.parametrize("first", range(0, CASES, PER_TEST))
def test_random_calls(first: int) -> None:
    kinds = {fuzzing.run_case(number) for number in range(first, first + PER_TEST)}
    assert kinds == fuzzing.KINDS.keys()


@pytest.mark.parametrize("name", fuzzing.INVALID_CALLS)
def test_every_invalid_call_is_refused(name: str) -> None:
    problem = make_problem(Spec(), DTYPES[0])
    fuzzing.check_invalid_call(problem, fuzzing.INVALID_CALLS[name])
