"""The verdicts of `bench/run.py` on made-up records, all of them and of one group."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.attention import points, targets
from bench.common import host
from bench.report import verdict
from bench.report.records import Record
from benchmarks.made_up_records import record_of, result_of, run_group, shortfalls, slower

pytestmark = pytest.mark.once


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


def at_share(percent: float, **wanted: object) -> Record:
    """A record that meets every target, with the points of these values at `percent` of the
    peak."""
    record = record_of("avx2")
    record.results = [
        result_of(r.point, "avx2", percent)
        if all(getattr(r.point, name) == value for name, value in wanted.items())
        else r
        for r in record.results
    ]
    return record


@pytest.mark.parametrize(
    ("percent", "where", "missed"),
    [
        (91.0, {"length": 512}, []),
        (89.0, {"length": 512, "head_dim": 64}, ["D 64, L >= 512: lowest share of the peak"]),
        (89.0, {"length": 4096, "head_dim": 128}, ["D 128, L >= 512: lowest share of the peak"]),
        (81.0, {"length": 128}, []),
        (79.0, {"length": 128, "head_dim": 128}, ["D 128, L 128: share of the peak"]),
        (86.0, {"length": 2048, "causal": True}, []),
        (84.0, {"length": 2048, "causal": True, "head_dim": 64},
         ["causal, D 64, L >= 1024: lowest share of the peak"]),
        (50.0, {"length": 512, "causal": True}, []),
        (50.0, {"length": 64}, []),
        (50.0, {"head_dim": 32}, []),
    ],
)  # fmt: skip
def test_lowest_share_of_the_peak_decides(percent: float, where: dict, missed: list[str]) -> None:
    where = {"causal": False, "group": "grid", "dtype": "float32"} | where
    for direction in ("forward", "backward"):
        record = at_share(percent, **where, direction=direction)
        assert shortfalls(record) == [f"{direction}, {what}" for what in missed]


def test_long_sequences_have_two_targets_for_the_share_of_the_peak() -> None:
    where = {"group": "grid", "dtype": "float32", "causal": False, "head_dim": 64, "length": 4096}
    record = at_share(79.0, **where, direction="forward")
    assert shortfalls(record) == [
        "forward, D 64, L >= 1024: lowest share of the peak",
        "forward, D 64, L >= 512: lowest share of the peak",
    ]
    assert "at L 4096 D 64" in verdict.report(targets.lines(record))


@pytest.mark.parametrize("dtype", points.DECODE_DTYPES)
def test_slow_decode_on_two_threads_is_a_shortfall(dtype: str) -> None:
    where = {"group": "decode", "dtype": dtype, "head_dim": 64}
    record = slower(record_of("avx512"), "flash", 1.1, **where, option="")
    name = "" if dtype == "float32" else f"{dtype}, "
    assert shortfalls(record) == [f"decode, {name}32768 keys, D 64, two threads: share of a copy"]
    assert shortfalls(slower(record, "flash", 1 / 1.1, **where, option="")) == []
    one = slower(record_of("avx512"), "flash", 2.0, **where, option=points.ONE_THREAD)
    assert shortfalls(one) == []  # shown, not judged


def test_slow_option_is_a_shortfall() -> None:
    record = slower(record_of("avx2"), "option", 1.2, group="option/plain", option="dropout")
    assert shortfalls(record) == ["option dropout: time over the plain call"]
    line = next(line for line in targets.lines(record) if line.verdict == "SHORTFALL")
    assert line.wanted_text == "<= 1.3x"


def test_targets_of_two_threads_are_not_measured_on_one_core() -> None:
    lines = targets.lines(record_of("avx2", cores=1))
    missing = [line for line in lines if line.verdict == "not measured"]
    decoding = len(points.DECODE_DTYPES) * len(points.DECODE_HEAD_DIMS)
    assert len(missing) == 2 * len(points.THREAD_SHAPES) + decoding
    assert all("two threads" in line.what and line.note == "one core" for line in missing)
    assert verdict.summary(lines).endswith("; 10 not measured.")


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
    [("window", 2), ("decode", 4), ("grid bfloat16", 4), ("option", 12), ("block size", 0)],
)
def test_group_has_its_own_targets_only(group: str, count: int) -> None:
    lines = targets.lines(record_of("avx2"), group)
    assert len(lines) == count
    assert all(line.group.startswith(group) for line in lines)


def test_matrix_tiles_have_targets_in_bfloat16_only() -> None:
    lines = targets.lines(record_of("amx"))
    assert {line.group for line in lines} == {"grid bfloat16"}
    assert {line.verdict for line in lines} == {"pass"}


def test_groups_of_all_targets_are_groups_of_points() -> None:
    for isa in host.ISAS:
        tags = {point.tag for point in points.plan(isa)}
        assert {line.group for line in targets.lines(record_of(isa))} <= tags


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
