"""The problems that combine options: every two variants meet, and in a problem that shows both."""

from __future__ import annotations

import pytest
from covering import GROUPS_AT_ONCE, HIDING, covering_rows, covering_specs, every_pair, pairs_met
from problems import VARIANTS, variant_pairs

pytestmark = pytest.mark.once


def test_every_two_variants_meet() -> None:
    met = set().union(*map(pairs_met, covering_rows()))
    assert met == every_pair()
    assert {"-".join(pair) for pair in met} == dict(variant_pairs()).keys()


def test_no_third_variant_hides_two_that_meet() -> None:
    row = {"dropout": "dropout-all", "sinks": "sinks-H", "causal": "causal"}
    assert pairs_met(row) == {("causal", "dropout-all"), ("sinks-H", "dropout-all")}
    assert HIDING <= {name for group in VARIANTS.values() for name in group}


def test_problems_are_fewer_than_pairs_and_have_few_options_each() -> None:
    specs, rows = covering_specs(), list(covering_rows())
    assert len(specs) == len(rows) < len(every_pair()) / 4
    assert max(map(len, rows)) == GROUPS_AT_ONCE
    assert list(covering_specs()) == list(specs)  # the same on every worker
