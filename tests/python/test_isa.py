"""Which kernels run: FLASH_ATTENTION_ISA and ATEN_CPU_CAPABILITY, read once by each process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import flash_attention
import pytest
import torch
from checks import largest_difference
from problems import DTYPES, Spec, dtype_name, make_problem
from tolerances import CLOSE

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
    "unknown": {"FLASH_ATTENTION_ISA": "avx3"},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ours-over-atens": {"ATEN_CPU_CAPABILITY": "default", "FLASH_ATTENTION_ISA": "avx2"},
}

HERE = Path(__file__).parent
SUPPORTED = {isa.name: isa.supported for isa in flash_attention.build_info().isa}


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, object]]:
    """What each case does in a process of its own, two processes at a time."""
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


@pytest.mark.parametrize(("case", "isa"), [("scalar", "scalar"), ("aten-default", "scalar")])
def test_scalar_can_be_asked_for(
    reports: dict[str, dict[str, object]], case: str, isa: str
) -> None:
    assert reports[case]["active"] == isa


@pytest.mark.parametrize("case", ["avx2", "aten-avx2", "ours-over-atens"])
def test_avx2_can_be_asked_for(reports: dict[str, dict[str, object]], case: str) -> None:
    """Where the processor lacks it, asking by our name is an error and by ATen's a cap."""
    if SUPPORTED["avx2"]:
        assert reports[case]["active"] == "avx2"
    elif case == "aten-avx2":
        assert reports[case]["active"] == "scalar"
    else:
        assert reports[case]["error"] == "ValueError"


def test_avx512_can_be_asked_for(reports: dict[str, dict[str, object]]) -> None:
    if SUPPORTED["avx512"]:
        assert reports["avx512"]["active"] == "avx512"
    else:
        assert reports["avx512"]["error"] == "ValueError"


def test_an_unknown_name_is_an_error_that_names_the_known(
    reports: dict[str, dict[str, object]],
) -> None:
    report = reports["unknown"]
    assert report["error"] == "ValueError"
    for fragment in ("flash::attention", "FLASH_ATTENTION_ISA", "expected", "avx3", *SUPPORTED):
        assert fragment in str(report["text"]), report


def test_the_best_supported_is_the_default(reports: dict[str, dict[str, object]]) -> None:
    best = next(name for name, supported in SUPPORTED.items() if supported)
    assert reports["nothing"]["active"] == best


def test_every_choice_computes_the_same(reports: dict[str, dict[str, object]]) -> None:
    outs = [float(str(r["out"])) for r in reports.values() if "out" in r]
    assert len(outs) >= 4
    assert max(outs) - min(outs) < 1e-4  # a sum of 60 float32 numbers of order 1


def test_this_run_uses_the_kernels_it_was_told_to() -> None:
    asked = os.environ.get("FLASH_ATTENTION_ISA")
    active = flash_attention.build_info().active
    assert SUPPORTED[active] and (asked is None or active == asked)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_use_simd_false_runs_the_scalar_kernels(dtype: torch.dtype) -> None:
    """Same numbers up to rounding; other bits where SIMD kernels are active, the same where not."""
    problem = make_problem(Spec(queries=100, keys=100, head_dim=64), dtype)
    simd = flash_attention.attention(**problem.inputs)
    scalar = flash_attention.attention(**problem.inputs, use_simd=False)
    assert largest_difference(simd, scalar) < CLOSE[dtype]
    if flash_attention.build_info().active == "scalar":
        assert torch.equal(simd, scalar)


COMPARED = [
    Spec(queries=70, keys=90, head_dim=24, bias="1H1S", causal=True, dropout=0.3),
    Spec(queries=300, keys=300, head_dim=64, value_dim=64, window=(50, 3), alibi="H", sinks="H"),
    Spec(queries=2, keys=3000, head_dim=33, softcap=5.0),
]

COMPARING_CHILD = """
import sys
import torch
from checks import run
from problems import make_problem
from test_isa import COMPARED

dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
torch.save([run(make_problem(s, d)).tensors() for s in COMPARED for d in dtypes], sys.argv[1])
"""


def test_results_across_instruction_sets(tmp_path: Path) -> None:
    """Output, lse and gradients; with dropout, the same weights are dropped by all of them."""
    found = {}
    for isa, supported in SUPPORTED.items():
        if not supported:
            continue
        environment = os.environ | {"FLASH_ATTENTION_ISA": isa, "PYTHONPATH": str(HERE)}
        path = tmp_path / isa
        command = [sys.executable, "-c", COMPARING_CHILD, str(path)]
        subprocess.run(command, env=environment, check=True, timeout=120)
        found[isa] = torch.load(path)
    assert "scalar" in found
    for isa, results in found.items():
        for one, other in zip(results, found["scalar"], strict=True):
            dtype = one["out"].dtype
            for name, tensor in one.items():
                size = max(1.0, other[name].abs().max().item())
                assert largest_difference(tensor, other[name]) <= CLOSE[dtype] * size, (isa, name)
