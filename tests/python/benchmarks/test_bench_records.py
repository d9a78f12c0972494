"""Records of `bench/run.py`: JSON, targets, provenance, repeated runs, tables and pictures."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import run, tables
from bench.attention import points, targets
from bench.attention import result as attention_result
from bench.attention.points import Point
from bench.common import host
from bench.report import pictures, provenance, records, repeats, run_tables, verdict
from bench.report.records import Record
from benchmarks.made_up_records import record_of, result_of, shortfalls, slower

pytestmark = pytest.mark.once

RECORDED = host.ROOT / "bench" / "results"


def test_result_survives_the_round_trip_through_json() -> None:
    made = result_of(Point("grid", "forward", 128, 64), "avx2")
    assert made.percent_of_peak() == pytest.approx(90)
    for short in (False, True):
        again = attention_result.from_row(json.loads(json.dumps(made.row(short))))
        assert again.point == made.point
        assert again.times_as_fast("torch") == pytest.approx(made.times_as_fast("torch"), rel=1e-3)
        assert again.percent_of_peak() == pytest.approx(90, rel=1e-3)
        assert again.share is None
    assert made.row()["bytes"] == made.point.bytes
    spread = replace(made, share=(0.875, 0.9, 0.925), part="grid float32")
    assert attention_result.from_row(json.loads(json.dumps(spread.row()))).share == spread.share
    assert attention_result.from_row(json.loads(json.dumps(spread.row()))).run == spread.run


def test_new_run_replaces_the_results_of_its_instruction_set_only(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    both = record_of("avx2", "avx512")
    both.write(path, short=True)
    kept = records.read(path)
    assert [r.point for r in kept.results] == [r.point for r in both.results]
    newer = Record({"avx2": both.runs["avx2"]}, both.of("avx2")[:1])
    merged = kept.merged(newer)
    assert len(merged.of("avx2")) == 1
    assert len(merged.of("avx512")) == len(both.of("avx512"))


def test_geometric_mean() -> None:
    assert verdict.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert verdict.geometric_mean([]) is None


def test_record_that_meets_every_target_passes() -> None:
    lines = targets.lines(record_of("avx2", "avx512"))
    assert {line.verdict for line in lines} == {"pass"}
    assert verdict.summary(lines) == f"{len(lines)} of {len(lines)} targets reached."


def test_low_mean_over_the_grid_is_a_shortfall() -> None:
    record = slower(record_of("avx2"), "torch", 1.6 / 2.5, dtype="float32", direction="forward",
                    group="grid")  # fmt: skip
    assert shortfalls(record) == ["forward, float32: mean against torch"]
    line = next(line for line in targets.lines(record) if line.verdict == "SHORTFALL")
    assert line.figure == pytest.approx(1.6)
    assert line.note == "48 points"
    text = verdict.report(targets.lines(record))
    assert "SHORTFALL | >= 1.65x" in text
    assert "1 SHORTFALL." in text


def test_worst_point_is_named() -> None:
    where = {"group": "grid", "direction": "backward", "length": 512, "head_dim": 32}
    record = slower(record_of("avx512"), "flash", 3.0, **where, causal=True, dtype="float32")
    assert shortfalls(record) == ["backward, float32: worst point against torch"]
    assert "at L 512 D 32, causal" in verdict.report(targets.lines(record))


def test_lowest_share_of_the_peak_decides() -> None:
    where = {"group": "grid", "direction": "forward", "head_dim": 64, "causal": False}
    record = record_of("avx2")
    record.results = [
        result_of(r.point, "avx2", percent=79.0)
        if all(getattr(r.point, name) == value for name, value in where.items())
        and r.point.length == 4096
        else r
        for r in record.results
    ]
    assert shortfalls(record) == ["forward, D 64, L >= 1024: lowest share of the peak"]


def test_slow_option_is_a_shortfall() -> None:
    record = slower(record_of("avx2"), "option", 1.2, group="option/plain", option="dropout")
    assert shortfalls(record) == ["option dropout: time over the plain call"]
    line = next(line for line in targets.lines(record) if line.verdict == "SHORTFALL")
    assert line.wanted_text == "<= 1.3x"


def test_targets_of_two_threads_are_not_measured_on_one_core() -> None:
    lines = targets.lines(record_of("avx2", cores=1))
    missing = [line for line in lines if line.verdict == "not measured"]
    assert len(missing) == 2 * len(points.THREAD_SHAPES) + len(points.DECODE_HEAD_DIMS)
    assert all("two threads" in line.what and line.note == "one core" for line in missing)
    assert verdict.summary(lines).endswith("; 8 not measured.")


def test_figures_carry_their_quartiles() -> None:
    record = record_of("avx2")
    record.results = [
        replace(
            r,
            share=(0.85, 0.9, 0.95),
            ratio={k: (0.9 * x[1], x[1], 1.2 * x[1]) for k, x in r.ratio.items()},
        )
        for r in record.results
    ]
    for line in targets.lines(record):
        low, high = line.worst.quartiles
        assert low < line.figure < high, line.what
    figures = {line.what: line.quartiles_text for line in targets.lines(record)}
    assert figures["forward, float32: mean against torch"] == "2.25-3.00"
    assert figures["forward, D 64, L >= 1024: lowest share of the peak"] == "85-95"
    text = verdict.side_by_side(targets.lines(record))
    assert re.search(r"forward, float32: mean .* 2.500x +\| +2.25-3.00 \|", text)


# --- one group ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "count"),
    [("window", 2), ("decode", 2), ("grid bfloat16", 3), ("option", 12), ("block size", 0)],
)
def test_group_has_its_own_targets_only(group: str, count: int) -> None:
    lines = targets.lines(record_of("avx2"), group)
    assert len(lines) == count
    assert all(line.group.startswith(group) for line in lines)


def test_groups_of_all_targets_are_groups_of_points() -> None:
    for isa in run.ISAS:
        tags = {point.tag for point in points.plan(isa)}
        assert {line.group for line in targets.lines(record_of(isa))} <= tags


def run_group(monkeypatch: pytest.MonkeyPatch, group: str, *options: object) -> int:
    """`bench/run.py --group` on made-up results at AVX2."""

    def run_isa(*_: object) -> Record:
        record = record_of("avx2")
        record.results = [r for r in record.results if r.point.tag.startswith(group)]
        return record

    monkeypatch.setattr(run, "supported", lambda: ["avx2"])
    monkeypatch.setattr(run, "run_isa", run_isa)
    monkeypatch.setattr(sys, "argv", ["run.py", f"--group={group}", *map(str, options)])
    return run.main()


def test_run_of_a_group_prints_and_writes_its_targets_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_group(monkeypatch, "window", f"--output={tmp_path}", "--strict") == 0
    printed = capsys.readouterr().out
    for text in (printed, (tmp_path / "results.md").read_text()):
        assert "not measured" not in text
        assert "block size" not in text
        assert "2 of 2 targets reached." in text
        rows = [line for line in text.splitlines() if line.startswith("| avx2 ")]
        assert len(rows) == 2
        assert all("window 128 of 4096" in row for row in rows)


def test_unknown_group_is_rejected_with_the_groups_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="got 'none such'; there are block size float32, decode"):
        run_group(monkeypatch, "none such", f"--output={tmp_path}")


# --- provenance -----------------------------------------------------------------------------------


def only(record: Record, group: str) -> Record:
    """What a run with `--group` measures."""
    return replace(record, results=[r for r in record.results if r.point.tag.startswith(group)])


def test_group_recorded_later_keeps_its_own_commit(tmp_path: Path) -> None:
    older = record_of("avx2", "avx512")
    newer = only(record_of("avx2", commit="bbbbbbb"), "decode")
    older.merged(newer, "decode").write(tmp_path / "record.json", short=True)
    record = records.read(tmp_path / "record.json")
    assert set(record.runs) == {"avx2", "avx512", "avx2 decode"}
    assert record.isas == ["avx2", "avx512"]
    commits = {
        r.point.group: records.commit_of(record.runs[r.run])
        for r in record.results
        if r.isa == "avx2"
    }
    assert commits.pop("decode") == "bbbbbbb"
    assert set(commits.values()) == {"aaaaaaa"}
    assert provenance.of_runs(record.runs_of(record.of("avx2"))) == [
        "Measured: a machine, commit aaaaaaa. Measured on their own: decode (commit bbbbbbb, "
        "2026-01-02).",
        "These figures were recorded at different commits: aaaaaaa, bbbbbbb.",
    ]
    whole = record.merged(record_of("avx2", commit="ccccccc"))
    assert set(whole.runs) == {"avx2", "avx512"}


def test_group_of_another_machine_has_a_line_of_its_own() -> None:
    older, newer = record_of("avx2"), only(record_of("avx2", commit="bbbbbbb"), "decode")
    newer.runs["avx2"]["machine"]["torch"] = "another"
    runs = older.merged(newer, "decode").runs
    assert provenance.of_runs(runs)[1] == "Measured (decode only): a machine, commit bbbbbbb."


def test_runs_of_one_commit_need_no_warning() -> None:
    record = record_of("avx2", "avx512")
    assert len(provenance.of_runs(record.runs)) == 2


def test_record_without_commits_is_readable() -> None:
    record = record_of("avx2")
    del record.runs["avx2"]["machine"]
    assert records.commit_of(record.runs["avx2"]) == records.UNKNOWN_COMMIT
    assert provenance.of_runs(record.runs) == ["Measured: a machine, commit aaaaaaa."]


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_committed_figures_carry_cpu_commit_date_and_spread(path: Path) -> None:
    record = records.read(path)
    for about in record.runs.values():
        machine = about["machine"]
        assert host.slug(machine["cpu"]) == path.stem
        assert re.fullmatch(r"[0-9a-f]{7,40}(\+changes)?", machine["commit"])
        assert machine["commit"] in about["where"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", machine["date"])
        assert machine["date"] in about["where"]
    for result in record.results:
        assert result.run in record.runs
        assert all(len(quartiles) == 3 for quartiles in result.ratio.values())
    assert all(len(result.ratio) == 3 for result in record.models)
    for line in repeats.all_lines(record):
        assert repeats.run_of(record, line), f"{line.what} is of several runs"


# --- repeated runs --------------------------------------------------------------------------------


def slow_window(commit: str = "aaaaaaa") -> Record:
    """A run of the group `window` that misses its targets."""
    return only(slower(record_of("avx2", commit=commit), "full", 0.5, group="window"), "window")


WINDOW = "forward, window 128 of 4096: against full"


@pytest.mark.parametrize("slow_first", [True, False])
def test_target_that_any_repeated_run_misses_is_not_met(slow_first: bool, tmp_path: Path) -> None:
    runs = [only(record_of("avx2"), "window"), slow_window()]
    record = record_of("avx2")
    for newer in reversed(runs) if slow_first else runs:
        record = repeats.merged(record, newer, "window")
        record.write(tmp_path / "record.json", short=True)
        record = records.read(tmp_path / "record.json")
    line = next(line for line in targets.lines(record) if line.what == WINDOW)
    assert (line.verdict, line.note_text) == (verdict.MISSED, "worst of 3 runs")
    assert line.figure == pytest.approx(10, rel=1e-3)
    assert f"{line.figure_text} {verdict.MISSED} (3 runs)" in verdict.side_by_side([line])
    assert shortfalls(record) == [x.what for x in targets.lines(record, "window")]
    assert {x.date for x in record.repeats} == {"2026-01-02"}


def test_repeats_of_another_commit_are_dropped() -> None:
    record = repeats.merged(record_of("avx2"), slow_window(), "window")
    assert len(record.repeats) == 2
    newer = only(record_of("avx2", commit="bbbbbbb"), "window")
    assert repeats.merged(record, newer, "window").repeats == []


def test_repeats_of_other_groups_are_kept() -> None:
    record = repeats.merged(record_of("avx2"), slow_window(), "window")
    again = repeats.merged(record, only(record_of("avx2", commit="bbbbbbb"), "decode"), "decode")
    assert again.repeats == record.repeats


@pytest.mark.parametrize("commit", [None, "aaaaaaa+changes"])
def test_runs_of_unknown_sources_are_no_repeats(commit: str | None) -> None:
    older, newer = (record_of("avx2", commit=commit) for _ in range(2))
    assert repeats.merged(older, newer).repeats == []


def test_recorded_run_is_judged_with_its_repeats(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    repeats.merged(record_of("avx2"), slow_window(), "window").write(path, short=True)
    monkeypatch.setattr(run, "record_path", lambda: path)
    options = (f"--output={tmp_path}", "--record", "--strict")
    assert run_group(monkeypatch, "window", *options) == 1
    assert capsys.readouterr().out.count("worst of 3 runs") == 2
    assert len(records.read(path).repeats) == 4


# --- tables and pictures --------------------------------------------------------------------------


def test_tables_of_the_documentation_are_made_from_a_record(
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
    assert "Measured: a machine, commit aaaaaaa." in page.read_text()
    assert page.read_text().count("\n| ") == 1 + 6 * 2 * 2
    with pytest.raises(SystemExit, match="run bench/run.py --record"):
        tables.show_recorded(["speed"], tmp_path / "none.json", [])


def test_page_and_pictures_show_every_point(tmp_path: Path) -> None:
    record = record_of("avx2")
    ratios = sum(len(result.ratio) for result in record.results)
    table = run_tables.points_table(record.results)
    assert len(table.splitlines()) == 2 + ratios
    blocks = run_tables.block_table(record.of("avx2", "block size"))
    assert len(blocks.splitlines()) == 2 + len(record.of("avx2", "block size"))
    assert blocks in run_tables.page(record, [])
    drawn = pictures.draw(record, tmp_path)
    assert [p.name for p in drawn] == [
        f"{kind}_avx2_{dtype}.png"
        for dtype in ("float32", "float64")
        for kind in ("ratio", "roofline")
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in drawn)
