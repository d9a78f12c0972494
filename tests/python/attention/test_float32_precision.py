"""float32 on matrix tiles, as torch's float32 matmul precision asks. Elsewhere it has no effect.

Emulated tiles take 50 us for 16 x 16 x 32 products, so shapes are small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import flash_attention
import pytest
import torch

from support.checks import check, largest_difference, run
from support.instruction_sets import WITH_FLOAT_PARTS
from support.problems import Problem, Spec, make_problem
from support.tolerances import TILE_PARTS_ROUNDED

SPECS = [
    Spec(1, 2, key_heads=1, queries=40, keys=70, head_dim=24, value_dim=17, causal=True),
    Spec(1, 1, queries=33, keys=50, head_dim=8, bias="1H1S", dropout=0.2, softcap=4.0),
    Spec(1, 2, queries=20, keys=64, head_dim=16, window=(9, 3), alibi="H", sinks="H"),
]


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Sets torch's float32 matmul precision inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def results(problem: Problem, name: str) -> dict[str, torch.Tensor]:
    with precision(name):
        return run(problem).tensors()


@pytest.mark.float_parts
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_high_uses_two_parts_where_there_are_tiles(isa: str, spec: Spec) -> None:
    problem = make_problem(spec, torch.float32)
    exact, high = results(problem, "highest"), results(problem, "high")
    for name, expected in exact.items():
        difference = largest_difference(high[name], expected)
        assert difference <= TILE_PARTS_ROUNDED * max(1.0, expected.abs().max().item()), name
    changed = [n for n in ("out", "dq", "dk", "dv") if not torch.equal(high[n], exact[n])]
    assert changed == (["out", "dq", "dk", "dv"] if isa in WITH_FLOAT_PARTS else [])


@pytest.mark.float_parts
def test_medium_is_high() -> None:
    problem = make_problem(SPECS[0], torch.float32)
    high = results(problem, "high")
    for name, tensor in results(problem, "medium").items():
        assert torch.equal(tensor, high[name]), name


@pytest.mark.float_parts
def test_other_dtypes_and_scalar_kernels_do_not_change() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        problem = make_problem(SPECS[2], dtype)
        exact = results(problem, "highest")
        for name, tensor in results(problem, "high").items():
            assert torch.equal(tensor, exact[name]), (dtype, name)
    inputs = make_problem(SPECS[2], torch.float32).inputs
    exact_out = flash_attention.attention(**inputs, use_simd=False)
    with precision("high"):
        assert torch.equal(flash_attention.attention(**inputs, use_simd=False), exact_out)


@pytest.mark.float_parts
def test_packed_sequences_match_separate_calls() -> None:
    lengths = (20, 1, 33)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = [torch.randn(sum(lengths), 2, 16) for _ in range(3)]
    with precision("high"):
        packed = flash_attention.varlen_attention(*rows, offsets, offsets, causal=True)
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            q, k, v = (x[begin:end].transpose(0, 1).unsqueeze(0) for x in rows)
            alone = flash_attention.attention(q, k, v, causal=True)
            assert torch.equal(packed[begin:end], alone.squeeze(0).transpose(0, 1))


@pytest.mark.float_parts
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_non_finite_and_huge_elements_are_computed_as_without_tiles(bad: float) -> None:
    for name in ("query", "key", "value"):
        problem = make_problem(replace(SPECS[0], causal=False), torch.float32)
        problem.inputs[name].view(-1)[3] = bad
        exact, high = results(problem, "highest"), results(problem, "high")
        for result, expected in exact.items():
            kinds = [(x.isnan(), x.isposinf(), x.isneginf()) for x in (high[result], expected)]
            for one, other in zip(*kinds, strict=True):
                assert torch.equal(one, other), (name, result)


CHILD = """
import json, sys, torch, flash_attention
from support.checks import check, run
from support.problems import make_problem
from attention.test_float32_precision import SPECS, results
report = []
for spec in SPECS:
    problem = make_problem(spec, torch.float32)
    check(problem)  # as accurate as torch's float32
    exact, high = results(problem, "highest"), results(problem, "high")
    report.append([n for n in ("out", "dq", "dk", "dv") if not torch.equal(high[n], exact[n])])
print(json.dumps([flash_attention.build_info().active, report, run(problem).out.tolist()]))
"""


@pytest.mark.once
def test_highest_uses_three_parts_where_tiles_are_asked_for() -> None:
    """As accurate as torch's float32, of other bits than the kernels without tiles."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=os.environ | {"FLASH_ATTENTION_ISA": "amx-emulated", "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    active, changed, out = json.loads(child.stdout.splitlines()[-1])
    assert active == "amx-emulated"
    assert changed == [["out", "dq", "dk", "dv"]] * len(SPECS)
    problem = make_problem(SPECS[-1], torch.float32)
    check(problem)
    assert run(problem).out.tolist() != out
