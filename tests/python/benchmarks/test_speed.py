"""`bench/run.py`: points and candidates, and small runs from end to end.

No test judges speed, which needs an idle machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import run
from bench.attention import candidates, expected_time, peak, points, speed, targets
from bench.attention.points import Point
from bench.common import host, progress, timing
from bench.report import records

BENCH = Path(__file__).resolve().parents[3] / "bench"

pytestmark = pytest.mark.once

# --- points ---------------------------------------------------------------------------------------


def test_flops_of_a_point() -> None:
    full = Point("grid", "forward", 128, 64, heads=8)
    assert full.flops == 4 * 128 * 128 * 64 * 8
    assert Point("grid", "forward", 128, 64, causal=True).flops == full.flops / 2
    assert Point("grid", "backward", 128, 64).flops == 2.5 * full.flops
    assert Point("grid", "training", 128, 64).flops == 3.5 * full.flops
    assert Point("grid", "forward", 128, 64, batch=3).flops == 3 * full.flops


def test_bytes_of_a_point_count_inputs_and_outputs() -> None:
    query = torch.empty(2, 8, 128, 64)
    forward = Point("grid", "forward", 128, 64, batch=2)
    assert forward.bytes == 4 * query.nbytes
    assert Point("grid", "backward", 128, 64, batch=2).bytes == 8 * query.nbytes
    assert Point("grid", "forward", 128, 64, batch=2, dtype="float64").bytes == 8 * query.nbytes


def test_plan_has_the_whole_grid_without_duplicates() -> None:
    for isa in run.ISAS:
        plan = points.plan(isa)
        assert len(plan) == len(set(plan))
        single = [p for p in plan if p.group == "grid" and p.dtype == "float32"]
        assert len(single) == 4 * 6 * 2 * 2
        standard = [p.length for p in plan if points.has_standard(p) and not p.causal]
        assert standard == [128, 512, 1024, 2048, 4096]
    longest = {full: max(p.length for p in points.plan("avx2", full) if p.dtype == "float64")
               for full in (False, True)}  # fmt: skip
    assert longest == {False: 2048, True: 4096}


def test_quick_plan_has_every_group() -> None:
    assert {p.group for p in points.quick_plan()} == {p.group for p in points.plan("avx2")}


def test_time_left_falls_to_zero_at_the_last_point() -> None:
    plan = points.quick_plan()
    left = progress.Progress([expected_time.expected_seconds([point], rounds=3) for point in plan])
    lines = [left.advance() for _ in plan]
    assert lines[0].startswith(f"1/{len(plan)}, ")
    assert lines[-1] == f"{len(plan)}/{len(plan)}, 0 s left"


# --- candidates -----------------------------------------------------------------------------------


def outputs(call: candidates.Call) -> list[torch.Tensor]:
    found = call()
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("direction", list(points.DIRECTIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_rivals_agree(direction: str, causal: bool) -> None:
    point = Point("own shape", direction, 24, 16, heads=2, dtype="float64", causal=causal)
    flash, *others = map(outputs, candidates.calls(point).values())
    assert len(others) == 2
    for other in others:
        for a, b in zip(flash, other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("option", sorted(set(points.RIVAL_OPTIONS + points.OPTIONS) - {"dropout"}))
def test_option_agrees_with_torch(option: str) -> None:
    point = Point("option/torch", "training", 24, 16, heads=4, dtype="float64", option=option)
    causal = option == "query positions"
    point = Point(**(point.__dict__ | {"causal": causal}))
    calls = candidates.calls(point)
    for a, b in zip(outputs(calls["flash"]), outputs(calls["torch"]), strict=True):
        torch.testing.assert_close(a, b)


def test_options_run_with_the_plain_call_and_unknown_ones_are_rejected() -> None:
    for option in points.OPTIONS:
        point = Point("option/plain", "training", 24, 16, causal=False, option=option)
        gradients = {name: len(outputs(call)) for name, call in candidates.calls(point).items()}
        assert gradients == {"plain": 3, "option": 4 if option == "bias gradient" else 3}
    with pytest.raises(ValueError, match="expected one of points.OPTIONS"):
        candidates.calls(Point("option/plain", "training", 24, 16, option="none such"))


def test_block_sizes_agree() -> None:
    point = Point("block size", "forward", 100, 16, heads=2, dtype="float64")
    calls = candidates.calls(point)
    assert list(calls) == ["default", "32", "64", "128", "256", "sqrt(L)"]
    with torch.no_grad():
        default, *others = (outputs(call)[0] for call in calls.values())
    for other in others:
        torch.testing.assert_close(default, other)


# --- measuring a point ----------------------------------------------------------------------------


def test_result_has_medians_and_quartiles_of_paired_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("grid", "forward", 64, 16)
    fma = peak.Probe(lambda: None, amount=point.flops / 2)
    machine = SimpleNamespace(probes=lambda _: {speed.FMA: fma})
    times = {
        "flash": [1.0, 2.0, 4.0],
        "torch": [2.0, 6.0, 16.0],
        speed.FMA: [0.25, 1.0, 3.0],
    }
    monkeypatch.setattr(timing, "interleaved", lambda calls, rounds: times)
    monkeypatch.setattr(host, "pin", lambda threads: None)
    found = speed.measure_point(point, "avx2", machine, rounds=3)
    assert found.seconds == {"flash": 2.0, "torch": 6.0}
    assert found.ratio == {"torch": (2.0, 3.0, 4.0)}
    assert found.fma == fma.amount
    assert found.percent_of_peak() == 100
    assert found.share == (2 * 0.25, 2 * 0.5, 2 * 0.75)


# --- from end to end ------------------------------------------------------------------------------


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "run.py", *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.skipif(not run.supported(), reason="the comparison needs AVX2")
def test_quick_run_from_end_to_end(tmp_path: Path) -> None:
    done = bench("--quick", "--only=attention", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    record = records.read(tmp_path / "results.json")
    assert list(record.runs) == run.supported()
    for isa, about in record.runs.items():
        assert f"kernels of this project: {isa}" in about["where"]
        assert about["machine"]["torch_cpu_capability"].lower() == isa
        assert all(rate > 0 for rate in about["rates"].values())
        done_here = record.of(isa)
        expected = [
            p for p in points.quick_plan() if p.group != "threads" or about["usable_cores"] > 1
        ]
        assert [result.point for result in done_here] == expected
        assert f"[{isa} {len(expected)}/{len(expected)}, " in done.stdout
    for result in record.results:
        assert all(seconds > 0 for seconds in result.seconds.values())
        assert all(low <= high for low, _, high in result.ratio.values())
    for line in targets.lines(record):
        assert line.what in done.stdout
    assert "targets reached" in done.stdout
    made = {path.name for path in tmp_path.iterdir()}
    assert {"results.md", f"ratio_{isa}_float32.png", f"roofline_{isa}_float64.png"} <= made


@pytest.mark.skipif(not run.supported(), reason="the comparison needs AVX2")
def test_own_shape_has_no_targets(tmp_path: Path) -> None:
    isa = run.supported()[0]
    shape = ("--length=40", "--head-dim=24", "--heads=2", "--dtype=float64", "--rounds=3")
    done = bench(*shape, f"--isa={isa}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "1 x 2 x 40 x 24" in done.stdout
    assert "standard" in done.stdout
    assert "Targets" not in done.stdout


@pytest.mark.parametrize("option", ["--record", "--strict"])
def test_record_and_strict_need_a_whole_run(option: str) -> None:
    done = bench("--quick", option)
    assert done.returncode == 2
    assert f"{option} " in done.stderr
    assert "expected it without --quick and --length" in done.stderr
