"""`bench/run.py`: points and candidates, and small runs from end to end.

No test judges speed, which needs an idle machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import run
from bench.attention import candidates, expected_time, peak, points, speed, targets
from bench.attention.points import Point
from bench.attention.result import Result
from bench.common import host, progress, timing
from bench.report import records
from benchmarks.made_up_records import result_of

BENCH = Path(__file__).resolve().parents[3] / "bench"

pytestmark = pytest.mark.once

# --- points ---------------------------------------------------------------------------------------


def test_flops_of_a_point() -> None:
    full = Point("grid", "forward", 128, 64, heads=8)
    assert full.flops == 4 * 128 * 128 * 64 * 8
    assert Point("grid", "backward", 128, 64).flops == 2.5 * full.flops
    assert Point("grid", "training", 128, 64).flops == 3.5 * full.flops
    assert Point("grid", "forward", 128, 64, batch=3).flops == 3 * full.flops
    narrow = Point("option/torch", "backward", 128, 64, option="value width")
    assert narrow.flops == 2 * 128 * 128 * 8 * (3 * 64 + 2 * 32)
    # The subject is the plain call.
    assert replace(narrow, group="option/plain").flops == 2.5 * full.flops
    assert Point("decode", "forward", 128, 64).flops == full.flops / 128


@pytest.mark.parametrize("length", [1, 5, 64])
@pytest.mark.parametrize("option", ["", "causal", "window 4", "window 5", "window 100"])
def test_flops_count_attended_pairs_only(length: int, option: str) -> None:
    group = "window" if option.startswith("window") else "grid"
    point = Point(group, "forward", length, 16, causal=option == "causal", option=option)
    place = torch.arange(length)
    distance = place - place[:, None]  # from each query to each key
    before, after = point.sides
    attended = (distance >= -before) & (distance <= after)
    assert point.pairs == attended.sum()
    assert point.flops == 4 * 16 * 8 * point.pairs
    if option in ("", "causal"):
        masked = torch.ones(length, length).triu(1).bool() if point.causal else torch.tensor(False)
        assert torch.equal(attended, ~masked.expand(length, length))


def test_bytes_of_a_point_count_inputs_and_outputs() -> None:
    query = torch.empty(2, 8, 128, 64)
    forward = Point("grid", "forward", 128, 64, batch=2)
    assert forward.bytes == 4 * query.nbytes
    assert Point("grid", "backward", 128, 64, batch=2).bytes == 8 * query.nbytes
    assert Point("grid", "forward", 128, 64, batch=2, dtype="float64").bytes == 8 * query.nbytes
    key, one = torch.empty(8, 4096, 64), torch.empty(8, 1, 64)
    assert Point("decode", "forward", 4096, 64).bytes == 2 * (key.nbytes + one.nbytes)


def test_plan_has_the_whole_grid_without_duplicates() -> None:
    for isa in host.ISAS:
        plan = points.plan(isa)
        assert len(plan) == len(set(plan))
    for isa in ("avx2", "avx512"):
        plan = points.plan(isa)
        single = [p for p in plan if p.group == "grid" and p.dtype == "float32"]
        assert len(single) == 4 * 6 * 2 * 2
        standard = [p.length for p in plan if points.has_standard(p) and not p.causal]
        assert standard == [128, 512, 1024, 2048, 4096]
    assert {p.tag for p in points.plan("avx512-bf16")} == {"grid bfloat16"}
    assert {p.tag for p in points.plan("amx")} == {"grid bfloat16", "float32 parts float32"}
    longest = {full: max(p.length for p in points.plan("avx2", full) if p.dtype == "float64")
               for full in (False, True)}  # fmt: skip
    assert longest == {False: 2048, True: 4096}


def test_quick_plan_has_every_group() -> None:
    assert {p.group for p in points.quick_plan("avx2")} == {p.group for p in points.plan("avx2")}


def test_decode_is_measured_on_one_thread_and_on_two() -> None:
    for plan in (points.plan("avx2"), points.quick_plan("avx2")):
        assert {p.threads for p in plan if p.group == "decode"} == {1, 2}
        assert {p.threads for p in plan if p.group == "threads"} == {2}
        assert {p.threads for p in plan if p.group not in ("decode", "threads")} == {1}


def test_time_left_falls_to_zero_at_the_last_point() -> None:
    plan = points.quick_plan("avx2")
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


def measured(
    monkeypatch: pytest.MonkeyPatch, point: Point, times: dict[str, list[float]]
) -> tuple[Result, list[str]]:
    """What `measure_point` makes of these times, if the probe is half of the point's operations;
    and the order of the calls."""
    fma = peak.Probe(lambda: None, amount=point.flops / 2)
    machine = SimpleNamespace(probes=lambda _: {speed.FMA: fma})
    order: list[str] = []

    def interleaved(calls: dict[str, object], rounds: int) -> dict[str, list[float]]:
        order.extend(calls)
        return times

    monkeypatch.setattr(timing, "interleaved", interleaved)
    monkeypatch.setattr(host, "pin", lambda threads: None)
    return speed.measure_point(point, "avx2", machine, rounds=3), order


# Per round; their means are 0.25, 1 and 3.
PEAK_TIMES = {speed.FMA: [0.125, 0.5, 4.0], speed.FMA_AFTER: [0.375, 1.5, 2.0]}


def test_result_has_medians_and_quartiles_of_paired_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("grid", "forward", 64, 16)
    times = {"flash": [1.0, 2.0, 4.0], "torch": [2.0, 6.0, 16.0]}
    found, order = measured(monkeypatch, point, times | PEAK_TIMES)
    assert order == [speed.FMA, "flash", speed.FMA_AFTER, "torch"]
    assert found.seconds == {"flash": 2.0, "torch": 6.0}
    assert found.ratio == {"torch": (2.0, 3.0, 4.0)}
    amount = point.flops / 2
    assert found.fma == amount
    assert found.fma_quartiles == (amount / 3, amount / 0.25)
    assert found.share == (2 * 0.25, 2 * 0.5, 2 * 0.75)
    assert found.percent_of_limit == 100
    line = speed.progress_line(found, "1/2, 3 s left")
    assert line.endswith(": 2 s, 100% of the FMA peak; torch 3.00x")


def test_share_of_two_threads_is_of_the_peak_of_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"two threads": [1.0, 2.0, 4.0], "one thread": [2.0, 4.0, 8.0]}
    found, _ = measured(monkeypatch, Point("threads", "forward", 64, 16), times | PEAK_TIMES)
    assert found.share == (0.25, 0.5, 0.75)


def test_limit_of_decode_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"flash": [1.0, 2.0, 4.0], "torch": [2.0, 6.0, 16.0], "copy": [0.5, 1.5, 4.0]}
    found, _ = measured(monkeypatch, Point("decode", "forward", 64, 16), times | PEAK_TIMES)
    assert found.limit == "copy"
    assert found.share is None
    assert found.share_of_limit == (0.5, 0.75, 1.0)
    assert found.percent_of_limit == 75
    assert speed.progress_line(found, "").endswith(": 2 s, 75% of a copy's bandwidth; torch 3.00x")


def test_limit_of_bfloat16_is_the_peak_of_tiles_where_there_are_any() -> None:
    assert result_of(Point("grid", "forward", 64, 16, dtype="bfloat16"), "amx").limit == "tiles"
    assert result_of(Point("grid", "forward", 64, 16, dtype="bfloat16"), "avx512").limit == "fma"
    assert result_of(Point("grid", "forward", 64, 16), "avx512").limit == "fma"


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
        capability = host.ENVIRONMENTS[isa].get("ATEN_CPU_CAPABILITY", "avx512")
        assert about["machine"]["torch_cpu_capability"].lower() == capability
        assert all(rate > 0 for rate in about["rates"].values())
        assert about["rate_quartiles"].keys() == about["rates"].keys()
        done_here = record.of(isa)
        expected = [p for p in points.quick_plan(isa) if p.threads <= about["usable_cores"]]
        assert [result.point for result in done_here] == expected
        assert f"[{isa} {len(expected)}/{len(expected)}, " in done.stdout
    for result in record.results:
        assert all(seconds > 0 for seconds in result.seconds.values())
        assert all(low <= high for low, _, high in result.ratio.values())
        low, high = result.fma_quartiles
        assert low <= result.fma <= high
        assert result.percent_of_limit > 0
    shares = re.findall(r"\d% of (.*?); ", done.stdout)
    assert len(shares) == len(record.results)
    assert {"the FMA peak", "a copy's bandwidth"} <= set(shares)
    for line in targets.lines(record):
        assert line.what in done.stdout
    assert "targets reached" in done.stdout
    made = {path.name for path in tmp_path.iterdir()}
    assert {"results.md", "ratio_avx2_float32.png", "roofline_avx2_float64.png"} <= made


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
