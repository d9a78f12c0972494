"""Context-parallel attention against one process: outputs, log-sum-exp and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.process_pool import ProcessPool
from support.sequence_parallel import Case, compare

pytestmark = pytest.mark.once

METHODS = ["ring", "all_gather", "ulysses"]

CASES = {
    "full": Case(),
    "causal": Case(causal=True),
    "causal-zigzag": Case(causal=True, load_balance="zigzag"),
    "zigzag": Case(load_balance="zigzag", length=37),
    "window": Case(window=(20, 9)),
    "left-window": Case(window=(30, -1)),
    "right-window": Case(window=(-1, 3)),
    "causal-window": Case(causal=True, window=(11, 4)),
    "window-zigzag": Case(causal=True, window=(25, 0), load_balance="zigzag"),
    "window-of-one": Case(window=(0, 0)),
    "softcap": Case(softcap=2.0, scale=0.7),
    "slopes": Case(causal=True, slopes="H"),
    "slopes-of-batch": Case(slopes="BH", load_balance="zigzag"),
    "sinks": Case(causal=True, sinks="H"),
    "sinks-of-batch": Case(sinks="BH", window=(5, 5)),
    "grouped-heads": Case(heads=(8, 4, 4), widths=(8, 8), causal=True),
    "unequal-heads": Case(heads=(16, 4, 8), widths=(8, 24)),
    "dropout": Case(dropout=0.3),
    "dropout-zigzag": Case(dropout=0.3, causal=True, load_balance="zigzag", length=149),
    "everything": Case(
        heads=(8, 4, 8),
        widths=(24, 8),
        causal=True,
        window=(40, 0),
        slopes="BH",
        sinks="H",
        softcap=3.0,
        scale=0.5,
        dropout=0.2,
        load_balance="zigzag",
        length=203,
    ),
}


def run(processes: ProcessPool, case: Case) -> None:
    """Compares on each process, with as many groups of heads as "ulysses" needs."""
    groups = math.gcd(*case.heads[1:])
    if case.method == "ulysses" and groups < processes.size:
        factor = -(-processes.size // groups)
        heads, key_heads, value_heads = (factor * count for count in case.heads)
        case = replace(case, heads=(heads, key_heads, value_heads))
    processes.run(compare, case)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_float64_is_that_of_one_process(processes: ProcessPool, name: str, method: str) -> None:
    run(processes, replace(CASES[name], method=method))


# Of 150 rows.
UNEVEN = {
    2: [(150, 0), (0, 150), (1, 149), (97, 53)],
    4: [(0, 3, 100, 47), (60, 0, 0, 90)],
    8: [(0, 3, 100, 0, 0, 7, 39, 1), (0, 0, 0, 0, 0, 0, 0, 150)],
}


@pytest.mark.parametrize("method", METHODS)
def test_any_numbers_of_rows(processes: ProcessPool, method: str) -> None:
    for lengths in UNEVEN[processes.size]:
        case = Case(
            method=method, lengths=lengths, causal=True, window=(70, 0), sinks="H", dropout=0.1
        )
        run(processes, case)
        run(processes, replace(case, causal=False, window=None, dropout=0.0, slopes="H"))


@pytest.mark.parametrize("length", [0, 1, 3, 5])
@pytest.mark.parametrize("load_balance", [None, "zigzag"])
def test_fewer_rows_than_processes(
    four_processes: ProcessPool, length: int, load_balance: str | None
) -> None:
    for method in METHODS:
        four_processes.run(
            compare,
            Case(method=method, length=length, causal=True, load_balance=load_balance, sinks="H"),
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype(processes: ProcessPool, dtype: torch.dtype, method: str) -> None:
    for case in (
        Case(causal=True, load_balance="zigzag"),
        Case(window=(33, 5), sinks="H", slopes="H", dropout=0.1),
    ):
        run(processes, replace(case, method=method, dtype=dtype))


def test_all_gather_has_the_bits_of_one_process_for_long_sequences(
    two_processes: ProcessPool,
) -> None:
    """Several blocks of keys and several tiles of queries on each process."""
    for dtype in (torch.float32, torch.bfloat16):
        for case in (
            Case(causal=True),
            Case(window=(100, 30)),
            Case(causal=True, window=(333, 0), load_balance="zigzag"),
            Case(dropout=0.2, lengths=(500, 501)),
            Case(causal=True, scale=2.0, sinks="H", load_balance="zigzag"),  # large scores
        ):
            two_processes.run(compare, replace(case, method="all_gather", dtype=dtype, length=1001))
