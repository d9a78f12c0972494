"""ISA dispatch: FLASH_ATTENTION_ISA and ATEN_CPU_CAPABILITY, which each process reads once."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import flash_attention
import pytest
import torch

from support.checks import largest_difference, run
from support.instruction_sets import SUPPORTED, active, kernels
from support.problems import DTYPES, DTYPES_16BIT, Spec, dtype_name, make_problem
from support.tolerances import CLOSE

CHILD = """
import json, torch, flash_attention
report = {}
try:
    q = torch.linspace(-1, 1, 60).view(1, 5, 12)
    report["out"] = flash_attention.attention(q, q, q).sum().item()
    report["active"] = flash_attention.build_info().active
except Exception as error:
    report = {"error": type(error).__name__, "text": str(error).splitlines()[0]}
print(json.dumps(report))
"""

CASES: dict[str, dict[str, str]] = {
    "nothing": {},
    "scalar": {"FLASH_ATTENTION_ISA": "scalar"},
    "avx2": {"FLASH_ATTENTION_ISA": "avx2"},
    "avx512": {"FLASH_ATTENTION_ISA": "avx512"},
    "avx512-bf16": {"FLASH_ATTENTION_ISA": "avx512-bf16"},
    "amx": {"FLASH_ATTENTION_ISA": "amx"},
    "unknown": {"FLASH_ATTENTION_ISA": "avx3"},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "ours-over-atens": {"ATEN_CPU_CAPABILITY": "default", "FLASH_ATTENTION_ISA": "avx2"},
}

SUPPORTED_BY_NAME = {isa.name: isa.supported for isa in flash_attention.build_info().isa}


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, object]]:
    """The result of each case in a process of its own, two processes at a time."""
    clean = {k: v for k, v in os.environ.items() if k not in ("FLASH_ATTENTION_ISA",)}
    clean.pop("ATEN_CPU_CAPABILITY", None)
    results: dict[str, dict[str, object]] = {}
    waiting = list(CASES.items())
    while waiting:
        batch, waiting = waiting[:2], waiting[2:]
        running = {
            name: subprocess.Popen(
                [sys.executable, "-c", CHILD],
                env=clean | changes,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, changes in batch
        }
        for name, process in running.items():
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, f"{name}: {err}"
            results[name] = json.loads(out)
    return results


@pytest.mark.once
@pytest.mark.parametrize("case", ["scalar", "aten-default"])
def test_scalar_can_be_requested(reports: dict[str, dict[str, object]], case: str) -> None:
    assert reports[case]["active"] == "scalar"


@pytest.mark.once
@pytest.mark.parametrize("case", ["avx2", "aten-avx2", "ours-over-atens"])
def test_avx2_can_be_requested(reports: dict[str, dict[str, object]], case: str) -> None:
    """Without AVX2, our variable gives an error; ATen's is an upper bound, so scalar runs."""
    if SUPPORTED_BY_NAME["avx2"]:
        assert reports[case]["active"] == "avx2"
    elif case == "aten-avx2":
        assert reports[case]["active"] == "scalar"
    else:
        assert reports[case]["error"] == "ValueError"


@pytest.mark.once
@pytest.mark.parametrize("isa", ["avx512", "avx512-bf16", "amx"])
def test_isa_can_be_requested_where_supported(
    reports: dict[str, dict[str, object]], isa: str
) -> None:
    if SUPPORTED_BY_NAME[isa]:
        assert reports[isa]["active"] == isa
    else:
        assert reports[isa]["error"] == "ValueError"


@pytest.mark.once
def test_atens_capability_can_forbid_amx(reports: dict[str, dict[str, object]]) -> None:
    best = next(n for n, supported in SUPPORTED_BY_NAME.items() if supported and n != "amx")
    assert reports["aten-avx512"]["active"] == best


@pytest.mark.once
def test_unknown_name_error_lists_the_known_names(
    reports: dict[str, dict[str, object]],
) -> None:
    report = reports["unknown"]
    assert report["error"] == "ValueError"
    known = ("flash::attention", "FLASH_ATTENTION_ISA", "expected", "avx3", *SUPPORTED_BY_NAME)
    for fragment in known:
        assert fragment in str(report["text"]), report


@pytest.mark.once
def test_best_supported_isa_is_the_default(reports: dict[str, dict[str, object]]) -> None:
    best = next(name for name, supported in SUPPORTED_BY_NAME.items() if supported)
    assert reports["nothing"]["active"] == best


@pytest.mark.once
def test_every_choice_gives_the_same_result(reports: dict[str, dict[str, object]]) -> None:
    outs = [float(str(r["out"])) for r in reports.values() if "out" in r]
    assert len(outs) >= 4
    assert max(outs) - min(outs) < 1e-4  # a sum of 60 float32 values of order 1


@pytest.mark.once
def test_this_run_uses_the_requested_kernels() -> None:
    asked = os.environ.get("FLASH_ATTENTION_ISA")
    assert active() in SUPPORTED and (asked is None or active() == asked)


def test_use_isa_switches_and_switches_back(isa: str) -> None:
    for other in SUPPORTED:
        with kernels(other):
            assert active() == other
        assert active() == isa
    for wrong in ("avx3", "", *(n for n, supported in SUPPORTED_BY_NAME.items() if not supported)):
        with pytest.raises(ValueError, match=r"flash::_use_isa: expected "):
            torch.ops.flash._use_isa(wrong)
        assert active() == isa


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_use_simd_false_runs_the_scalar_kernels(dtype: torch.dtype) -> None:
    """Equal up to rounding; bitwise equal where the scalar kernels are active."""
    problem = make_problem(Spec(queries=100, keys=100, head_dim=64), dtype)
    simd = flash_attention.attention(**problem.inputs)
    scalar = flash_attention.attention(**problem.inputs, use_simd=False)
    assert largest_difference(simd, scalar) < CLOSE[dtype]
    if active() == "scalar":
        assert torch.equal(simd, scalar)


COMPARED = [
    Spec(queries=70, keys=90, head_dim=24, bias="1H1S", causal=True, dropout=0.3),
    Spec(queries=300, keys=300, head_dim=64, value_dim=64, window=(50, 3), alibi="H", sinks="H"),
    Spec(queries=2, keys=3000, head_dim=33, softcap=5.0),
]


@pytest.mark.once
def test_results_across_instruction_sets() -> None:
    """Output, lse and gradients match across instruction sets, with the same dropout mask."""
    for spec, dtype in itertools.product(COMPARED, DTYPES + DTYPES_16BIT):
        problem = make_problem(spec, dtype)
        with kernels("scalar"):
            expected = run(problem).tensors()
        for isa in SUPPORTED:
            with kernels(isa):
                found = run(problem).tensors()
            for name, tensor in expected.items():
                size = max(1.0, tensor.abs().max().item())
                difference = largest_difference(found[name], tensor)
                assert difference <= CLOSE[tensor.dtype] * size, (spec, isa, name)
            # SIMD sums in another order, so equal bits would mean the kernels were not switched.
            if isa != "scalar" and dtype in DTYPES:
                assert not torch.equal(found["dq"], expected["dq"]), (spec, isa)
