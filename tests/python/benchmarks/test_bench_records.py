"""Records of `bench/run.py`: JSON, provenance, repeated runs, tables and pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import run, tables
from bench.attention import points, targets
from bench.attention import result as attention_result
from bench.attention.points import Point
from bench.common import host
from bench.report import limit_tables, pictures, provenance, records, repeats, run_tables, verdict
from bench.report.records import Record
from benchmarks.made_up_records import record_of, result_of, run_group, shortfalls, slower

pytestmark = pytest.mark.once

RECORDED = host.ROOT / "bench" / "results"


def test_result_survives_the_round_trip_through_json() -> None:
    made = result_of(Point("grid", "forward", 128, 64), "avx2")
    assert made.percent_of_limit == pytest.approx(95)
    for short in (False, True):
        again = attention_result.from_row(json.loads(json.dumps(made.row(short))))
        assert again.point == made.point
        assert again.times_as_fast("torch") == pytest.approx(made.times_as_fast("torch"), rel=1e-3)
        assert again.percent_of_limit == pytest.approx(95, rel=1e-3)
        assert again.share is None
        assert again.fma_quartiles is None
    assert made.row()["bytes"] == made.point.bytes
    assert (made.row()["limit"], made.row()["percent_of_limit"]) == ("fma", 95.0)
    spread = replace(
        made, share=(0.875, 0.9, 0.925), fma_quartiles=(99e9, 101e9), part="grid float32"
    )
    for short in (False, True):
        again = attention_result.from_row(json.loads(json.dumps(spread.row(short))))
        assert again.share == again.share_of_limit == spread.share
        assert again.percent_of_limit == 90
        assert again.fma_quartiles == spread.fma_quartiles
        assert again.run == spread.run


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
    end = "<!-- end of table -->\n"
    other = f"<!-- table: speed of other -->\n{end}"
    page.write_text(f"<!-- table: speed of record -->\n{end}{other}")
    tables.show_recorded(list(tables.RECORDED), path, [page])
    printed = capsys.readouterr().out
    assert "avx512: wanted" in printed
    assert "targets reached." in printed
    assert "Measured: a machine, commit aaaaaaa." in page.read_text()
    assert page.read_text().count("\n| ") == 1 + 6 * 2 * 2
    assert page.read_text().endswith(other)
    with pytest.raises(SystemExit, match="run bench/run.py --record"):
        tables.show_recorded(["speed"], tmp_path / "none.json", [])


def test_shares_of_the_limit_are_shown_by_length_and_for_decode() -> None:
    record = record_of("avx2", "amx")
    text = limit_tables.peak_table(record)
    assert text.splitlines()[0].endswith(
        "|   D | L 64 | L 128 | L 512 | L 1024 | L 2048 | L 4096 |"
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]
    assert len(rows) == 2 * 4 * len(points.HEAD_DIMS)
    assert rows[0] == ["avx2", "forward, full, float32", "16", *["95"] * 6]
    # torch's backward in bfloat16 is not measured at every length.
    expected = ["amx", "backward, causal, bfloat16", "128", "95", "-", "95", "95", "-", "-"]
    assert rows[-1] == expected
    decoding = limit_tables.decode_table(record).splitlines()[2:]
    assert len(decoding) == 2 * len(points.DECODE_DTYPES) * len(points.DECODE_HEAD_DIMS)
    assert all(" 95 " in row for row in decoding)


def test_spread_of_the_peak_is_shown_only_where_it_was_recorded() -> None:
    made = result_of(Point("grid", "forward", 128, 64), "avx2")
    newer = replace(made, share=(0.93, 0.95, 0.97), fma_quartiles=(99e9, 101e9))
    assert run_tables.limit(made) == "fma 100.0 GFLOP/s"
    assert run_tables.limit(newer) == "fma 100.0 (99.0-101.0) GFLOP/s"
    assert (run_tables.share_quartiles(made), run_tables.share_quartiles(newer)) == ("-", "93-97")
    about = {"rates": {"fma float32": 100e9, "copy": 20e9}}
    assert run_tables.rates_text(about) == "fma float32 100.0 GFLOP/s; copy 20.0 GB/s"
    about["rate_quartiles"] = {"copy": [19e9, 21e9]}
    assert run_tables.rates_text(about).endswith("; copy 20.0 (19.0-21.0) GB/s")


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
