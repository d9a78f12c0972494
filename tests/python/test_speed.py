"""`make bench`: points, candidates and targets, and a small run from end to end.

No test judges how fast anything is: that is for a run on an idle machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import candidates  # noqa: E402
import pictures  # noqa: E402
import points  # noqa: E402
import progress  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402
import speed  # noqa: E402
import tables  # noqa: E402
import targets  # noqa: E402
from points import Point  # noqa: E402
from results import Record, Result  # noqa: E402

pytestmark = pytest.mark.once

# The candidates of each group, and the ratio at which its targets are reached with some room.
CANDIDATES = {
    "grid": {"flash": 1.0, "torch": 2.5},
    "forecast": {"flash": 1.0, "torch": 2.5},
    "overhead": {"flash": 1.0, "torch": 2.5},
    "threads": {"two threads": 1.0, "one thread": 1.9},
    "option/torch": {"flash": 1.0, "torch": 3.5},
    "option/plain": {"plain": 1.0, "option": 1.1},
    "block size": {"default": 1.0, "32": 1.1, "sqrt(L)": 0.9},
    "window": {"window": 1.0, "full": 20.0},
    "decode": {"flash": 1.0, "torch": 1.5, "copy": 0.95},
}
PEAK = 100e9


def result_of(point: Point, isa: str, percent: float = 90.0) -> Result:
    """Made up: the subject at `percent` of the peak, the others as CANDIDATES says."""
    seconds = point.flops / (PEAK * percent / 100)
    times = {name: seconds * factor for name, factor in CANDIDATES[point.group].items()}
    if points.has_standard(point):
        times["standard"] = 2.5 * seconds
    subject = next(iter(times))
    ratio = {name: 3 * (times[name] / seconds,) for name in times if name != subject}
    return Result(isa, point, times, ratio, fma=PEAK, product=0.9 * PEAK)


def record_of(*isas: str, cores: int = 2) -> Record:
    """A whole run in which every target is reached."""
    rates = {"fma float32": PEAK, "fma float64": PEAK / 2, "copy": 20e9}
    about = {"where": "a machine", "usable_cores": cores, "rounds": 15, "rates": rates}
    found = [
        result_of(point, isa)
        for isa in isas
        for point in points.plan(isa)
        if point.group not in speed.TWO_CORES or cores > 1
    ]
    return Record({isa: about for isa in isas}, found)


def slower(record: Record, candidate: str, factor: float, **wanted: object) -> Record:
    """`candidate` takes `factor` times as long wherever the point has the wanted values."""
    changed = []
    for result in record.results:
        if all(getattr(result.point, name) == value for name, value in wanted.items()):
            seconds = dict(result.seconds)
            seconds[candidate] *= factor
            base = seconds[result.subject]
            ratio = {name: 3 * (seconds[name] / base,) for name in result.ratio}
            result = Result(result.isa, result.point, seconds, ratio, result.fma, result.product)
        changed.append(result)
    return Record(record.runs, changed)


def shortfalls(record: Record) -> list[str]:
    return [line.what for line in targets.lines(record) if line.verdict == "SHORTFALL"]


# --- points ---------------------------------------------------------------------------------------


def test_operations_of_a_point() -> None:
    full = Point("grid", "forward", 128, 64, heads=8)
    assert full.flops == 4 * 128 * 128 * 64 * 8
    assert Point("grid", "forward", 128, 64, causal=True).flops == full.flops / 2
    assert Point("grid", "backward", 128, 64).flops == 2.5 * full.flops
    assert Point("grid", "training", 128, 64).flops == 3.5 * full.flops
    assert Point("grid", "forward", 128, 64, batch=3).flops == 3 * full.flops


def test_bytes_of_a_point_are_those_of_its_inputs_and_outputs() -> None:
    query = torch.empty(2, 8, 128, 64)
    forward = Point("grid", "forward", 128, 64, batch=2)
    assert forward.bytes == 4 * query.nbytes
    assert Point("grid", "backward", 128, 64, batch=2).bytes == 8 * query.nbytes
    assert Point("grid", "forward", 128, 64, batch=2, dtype="float64").bytes == 8 * query.nbytes


def test_plan_has_the_whole_grid_and_no_point_twice() -> None:
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


def test_time_left_goes_down_to_what_is_done_elsewhere() -> None:
    plan = points.quick_plan()
    left = progress.Progress([progress.expected_seconds([point], rounds=3) for point in plan])
    lines = [left.advance() for _ in plan]
    assert lines[0].startswith(f"1/{len(plan)}, ")
    assert lines[-1] == f"{len(plan)}/{len(plan)}, 0 s left"


# --- candidates -----------------------------------------------------------------------------------


def outputs(call: candidates.Call) -> list[torch.Tensor]:
    found = call()
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("direction", list(points.DIRECTIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_rivals_compute_the_same(direction: str, causal: bool) -> None:
    point = Point("own shape", direction, 24, 16, heads=2, dtype="float64", causal=causal)
    flash, *others = map(outputs, candidates.calls(point).values())
    assert len(others) == 2
    for other in others:
        for a, b in zip(flash, other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("option", sorted(set(points.RIVAL_OPTIONS + points.OPTIONS) - {"dropout"}))
def test_option_means_the_same_to_torch(option: str) -> None:
    point = Point("option/torch", "training", 24, 16, heads=4, dtype="float64", option=option)
    causal = option == "query positions"
    point = Point(**(point.__dict__ | {"causal": causal}))
    calls = candidates.calls(point)
    for a, b in zip(outputs(calls["flash"]), outputs(calls["torch"]), strict=True):
        torch.testing.assert_close(a, b)


def test_options_run_beside_the_plain_call_and_unknown_ones_are_refused() -> None:
    for option in points.OPTIONS:
        point = Point("option/plain", "training", 24, 16, causal=False, option=option)
        gradients = {name: len(outputs(call)) for name, call in candidates.calls(point).items()}
        assert gradients == {"plain": 3, "option": 4 if option == "bias gradient" else 3}
    with pytest.raises(ValueError, match="expected an option"):
        candidates.calls(Point("option/plain", "training", 24, 16, option="none such"))


def test_block_sizes_compute_the_same() -> None:
    point = Point("block size", "forward", 100, 16, heads=2, dtype="float64")
    calls = candidates.calls(point)
    assert list(calls) == ["default", "32", "64", "128", "256", "sqrt(L)"]
    with torch.no_grad():
        default, *others = (outputs(call)[0] for call in calls.values())
    for other in others:
        torch.testing.assert_close(default, other)


# --- results and targets --------------------------------------------------------------------------


def test_result_is_its_row_again() -> None:
    made = result_of(Point("grid", "forward", 128, 64), "avx2")
    assert made.percent_of_peak() == pytest.approx(90)
    for short in (False, True):
        again = results.from_row(json.loads(json.dumps(made.row(short))))
        assert again.point == made.point
        assert again.times_as_fast("torch") == pytest.approx(made.times_as_fast("torch"), rel=1e-3)
        assert again.percent_of_peak() == pytest.approx(90, rel=1e-3)
    assert made.row()["bytes"] == made.point.bytes


def test_record_is_kept_and_renewed_by_instruction_set(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    both = record_of("avx2", "avx512")
    both.write(path, short=True)
    kept = results.read(path)
    assert [r.point for r in kept.results] == [r.point for r in both.results]
    newer = Record({"avx2": both.runs["avx2"]}, both.of("avx2")[:1])
    merged = kept.merged(newer)
    assert len(merged.of("avx2")) == 1
    assert len(merged.of("avx512")) == len(both.of("avx512"))


def test_geometric_mean() -> None:
    assert targets.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert targets.geometric_mean([]) is None


def test_every_target_can_be_reached() -> None:
    lines = targets.lines(record_of("avx2", "avx512"))
    assert {line.verdict for line in lines} == {"pass"}
    assert targets.summary(lines) == f"{len(lines)} of {len(lines)} targets reached."


def test_mean_over_the_grid_falls_short() -> None:
    record = slower(record_of("avx2"), "torch", 1.6 / 2.5, dtype="float32", direction="forward",
                    group="grid")  # fmt: skip
    assert shortfalls(record) == ["forward, float32: mean against torch"]
    line = next(line for line in targets.lines(record) if line.verdict == "SHORTFALL")
    assert line.figure == pytest.approx(1.6)
    assert line.note == "48 points"
    text = targets.report(targets.lines(record))
    assert "SHORTFALL | >= 1.65x" in text
    assert "1 SHORTFALL." in text


def test_one_slow_point_is_named() -> None:
    where = {"group": "grid", "direction": "backward", "length": 512, "head_dim": 32}
    record = slower(record_of("avx512"), "flash", 3.0, **where, causal=True, dtype="float32")
    assert shortfalls(record) == ["backward, float32: worst point against torch"]
    assert "at L 512 D 32, causal" in targets.report(targets.lines(record))


def test_lowest_share_of_the_peak_decides() -> None:
    where = {"group": "grid", "direction": "forward", "head_dim": 64, "causal": False}
    record = record_of("avx2")
    record.results = [
        result_of(r.point, "avx2", 79.0)
        if all(getattr(r.point, name) == value for name, value in where.items())
        and r.point.length == 4096
        else r
        for r in record.results
    ]
    assert shortfalls(record) == ["forward, D 64, L >= 1024: lowest share of the peak"]


def test_option_must_not_cost_more_than_allowed() -> None:
    record = slower(record_of("avx2"), "option", 1.2, group="option/plain", option="dropout")
    assert shortfalls(record) == ["option dropout: time over the plain call"]
    line = next(line for line in targets.lines(record) if line.verdict == "SHORTFALL")
    assert line.wanted_text == "<= 1.3x"


def test_one_core_is_no_shortfall() -> None:
    lines = targets.lines(record_of("avx2", cores=1))
    missing = [line for line in lines if line.verdict == "not measured"]
    assert len(missing) == 2 * len(points.THREAD_SHAPES) + len(points.DECODE_HEAD_DIMS)
    assert all("two threads" in line.what and line.note == "one core" for line in missing)
    assert targets.summary(lines).endswith("; 8 not measured.")


def test_tables_of_the_documentation_come_from_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    record_of("avx2", "avx512").write(path, short=True)
    page = tmp_path / "page.md"
    page.write_text("<!-- table: speed -->\n<!-- end of table -->\n")
    tables.show_recorded(list(tables.RECORDED), path, [page])
    printed = capsys.readouterr().out
    assert "avx512: wanted" in printed
    assert "targets reached." in printed
    assert "Measured: a machine." in page.read_text()
    assert page.read_text().count("\n| ") == 1 + 6 * 2 * 2
    with pytest.raises(SystemExit, match="run bench/run.py --record"):
        tables.show_recorded(["speed"], tmp_path / "none.json", [])


def test_page_and_pictures_show_every_point(tmp_path: Path) -> None:
    record = record_of("avx2")
    ratios = sum(len(result.ratio) for result in record.results)
    table = report.points_table(record.results)
    assert len(table.splitlines()) == 2 + ratios
    blocks = report.block_table(record.of("avx2", "block size"))
    assert len(blocks.splitlines()) == 2 + len(record.of("avx2", "block size"))
    assert blocks in report.page(record)
    drawn = pictures.draw(record, tmp_path)
    assert [p.name for p in drawn] == [
        f"{kind}_avx2_{dtype}.png"
        for dtype in ("float32", "float64")
        for kind in ("ratio", "roofline")
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in drawn)


# --- from end to end ------------------------------------------------------------------------------


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "run.py", *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.skipif(not run.supported(), reason="the comparison needs AVX2")
def test_quick_run_from_end_to_end(tmp_path: Path) -> None:
    done = bench("--quick", "--only=attention", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    record = results.read(tmp_path / "results.json")
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
def test_own_shape_is_measured_without_targets(tmp_path: Path) -> None:
    isa = run.supported()[0]
    shape = ("--length=40", "--head-dim=24", "--heads=2", "--dtype=float64", "--rounds=3")
    done = bench(*shape, f"--isa={isa}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "1 x 2 x 40 x 24" in done.stdout
    assert "standard" in done.stdout
    assert "Targets" not in done.stdout


@pytest.mark.parametrize("option", ["--record", "--strict"])
def test_only_whole_runs_are_kept_and_judged(option: str) -> None:
    done = bench("--quick", option)
    assert done.returncode == 2
    assert f"{option} " in done.stderr
    assert "expected it without --quick and --length" in done.stderr
