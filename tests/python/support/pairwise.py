"""A pairwise covering array: problems with several options that cover every pair of variants."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from support.problems import VARIANTS, Spec, are_compatible

# Options per problem. With all groups on, few keys would be left to attend, which hides errors, and
# the code for single options would never run.
GROUPS_PER_ROW = 5

# With these, results hardly depend on other options: all weights are 0, all scores are equal, or
# each query attends one key. A pair counts as covered only in a problem without a third one.
DOMINANT_VARIANTS = frozenset({"dropout-all", "scale-zero", "window-diagonal"})

CANDIDATES = 30  # random rows generated for each one kept

Row = dict[str, str]  # the variant of each group that is on
Pair = tuple[str, str]  # names of variants, in the order of VARIANTS

ORDER = {name: i for i, name in enumerate(n for group in VARIANTS.values() for n in group)}


def all_pairs_of_variants() -> set[Pair]:
    """Every pair of variants from different, compatible groups."""
    return {
        (a, b)
        for first, second in itertools.combinations(VARIANTS, 2)
        if are_compatible({first, second})
        for a, b in itertools.product(VARIANTS[first], VARIANTS[second])
    }


def pairs_covered(row: Row) -> set[Pair]:
    """The pairs of variants in `row` beside which no third one is dominant."""
    names = sorted(row.values(), key=ORDER.__getitem__)
    return {
        pair
        for pair in itertools.combinations(names, 2)
        if not DOMINANT_VARIANTS.intersection(names) - set(pair)
    }


def _random_row(rng: random.Random, first: Pair) -> Row:
    """A random row that contains the pair `first`."""
    group_of = {name: group for group, names in VARIANTS.items() for name in names}
    row = {group_of[name]: name for name in first}
    groups = [g for g in VARIANTS if g not in row]
    rng.shuffle(groups)
    for group in groups:
        if len(row) < GROUPS_PER_ROW and are_compatible({*row, group}):
            row[group] = rng.choice(list(VARIANTS[group]))
    return row


def pairwise_rows(seed: int = 0) -> Iterator[Row]:
    """Rows that cover every pair: greedily, the candidate that covers the most missing pairs."""
    rng = random.Random(seed)
    missing = all_pairs_of_variants()
    while missing:
        pool = sorted(missing)
        candidates = [_random_row(rng, rng.choice(pool)) for _ in range(CANDIDATES)]
        best = max(candidates, key=lambda row: len(pairs_covered(row) & missing))
        missing -= pairs_covered(best)
        yield best


def pairwise_specs(seed: int = 0) -> dict[str, Spec]:
    """The problems of `pairwise_rows`, keyed by the names of their variants."""
    specs = {}
    for row in pairwise_rows(seed):
        names = sorted(row.values(), key=ORDER.__getitem__)
        changes = {k: v for group, name in row.items() for k, v in VARIANTS[group][name].items()}
        specs["+".join(names)] = replace(Spec(), **changes)
    return specs
