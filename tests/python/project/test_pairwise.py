"""The pairwise covering array contains every pair of variants, in a problem that tests both."""

from __future__ import annotations

import pytest

from support.pairwise import (
    DOMINANT_VARIANTS,
    GROUPS_PER_ROW,
    all_pairs_of_variants,
    pairs_covered,
    pairwise_rows,
    pairwise_specs,
)
from support.problems import VARIANTS, variant_pairs

pytestmark = pytest.mark.once


def test_every_pair_of_variants_is_covered() -> None:
    met = set().union(*map(pairs_covered, pairwise_rows()))
    assert met == all_pairs_of_variants()
    assert {"-".join(pair) for pair in met} == dict(variant_pairs()).keys()


def test_pairs_beside_a_dominant_variant_do_not_count() -> None:
    row = {"dropout": "dropout-all", "sinks": "sinks-H", "causal": "causal"}
    assert pairs_covered(row) == {("causal", "dropout-all"), ("sinks-H", "dropout-all")}
    assert DOMINANT_VARIANTS <= {name for group in VARIANTS.values() for name in group}


def test_covering_array_is_small_and_deterministic() -> None:
    specs, rows = pairwise_specs(), list(pairwise_rows())
    assert len(specs) == len(rows) < len(all_pairs_of_variants()) / 4
    assert max(map(len, rows)) == GROUPS_PER_ROW
    assert list(pairwise_specs()) == list(specs)  # identical on every xdist worker
