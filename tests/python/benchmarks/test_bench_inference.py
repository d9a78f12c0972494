"""Forecasts beside neuralforecast's, without it: plan, sides, export, records and targets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import tables
from bench.models import (
    inference,
    inference_tables,
    onnx_runtime,
    result,
    shapes,
    targets,
    training_pair,
)
from bench.models.result import InferenceResult
from bench.models.shapes import Shape
from bench.report import model_report, records, run_tables
from benchmarks.test_bench_models import Linear, whole_run

pytestmark = pytest.mark.once

SHAPE = Shape("PatchTST", 12, batch=2, horizon=5)


def forecast(shape: Shape, faster: float = 2.0, missing: str = "") -> InferenceResult:
    """The result if ours takes a millisecond, and ONNX Runtime half of neuralforecast's time."""
    ratio = {"neuralforecast": 3 * (faster,)}
    if not missing:
        ratio["onnx"] = 3 * (faster / 2,)
    seconds = {"ours": 1e-3} | {side: 1e-3 * x[1] for side, x in ratio.items()}
    reasons = {"onnx": missing} if missing else {}
    return InferenceResult(shape, 15, seconds, ratio, dict.fromkeys(ratio, 1e-6), reasons)


def test_plan_has_each_model_with_one_window_and_with_a_batch() -> None:
    found = [(s.model, s.length, s.batch, s.series) for s in shapes.inference_plan()]
    assert sorted(found) == sorted(
        (model, length, batch, 21 if model == "iTransformer" else 1)
        for model in shapes.MODELS
        for length in (96, 336)
        for batch in (1, 32)
    )
    assert shapes.inference_plan(("TFT",), (1024,)) == []


def test_forecast_runs_without_autograd_and_without_dropout() -> None:
    class Probe(Linear):
        def forward(self, windows: dict[str, Tensor | None]) -> Tensor:
            assert torch.is_inference_mode_enabled()
            assert not self.training
            return super().forward(windows)

    model = Probe(SHAPE).train()
    call = inference.eager(model, training_pair.windows(SHAPE)[0])
    assert call().is_inference()
    assert model.training is False


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Linear:
    """One model as both sides."""
    model = Linear(SHAPE)
    made = {"ours": model, "neuralforecast": model}
    monkeypatch.setattr(training_pair, "checked_pair", lambda _: (made, 0.0))
    return model


@pytest.mark.usefixtures("pair")
def test_model_that_cannot_be_exported_leaves_a_reason_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Shape] = []

    def forecast(_: Path, shape: Shape, __: Tensor) -> None:
        tried.append(shape)
        raise onnx_runtime.CannotRun("cannot be exported: no such operator")

    monkeypatch.setattr(onnx_runtime, "forecast", forecast)
    known: dict[str, str] = {}
    for _ in range(2):
        row = inference.measure(SHAPE, 3, Path("compare.py"), known)
        assert row.missing == {"onnx": "cannot be exported: no such operator"}
        assert row.seconds.keys() == {"ours", "neuralforecast"}
    assert tried == [SHAPE]


@pytest.mark.parametrize(("factor", "runs"), [(1.0, True), (1.1, False)])
def test_export_with_other_outputs_is_not_compared(
    factor: float, runs: bool, pair: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, _ = training_pair.windows(SHAPE)
    output = factor * pair(inputs).detach()
    monkeypatch.setattr(onnx_runtime, "forecast", lambda *_: lambda: output)
    row = inference.measure(SHAPE, 3, Path("compare.py"), {})
    assert ("onnx" in row.ratio) == runs
    assert ("onnx" in row.missing) != runs
    # Not exactly: dividing by the largest output rounds.
    assert runs or "differs from neuralforecast's by 0.1 of" in row.missing["onnx"]


def test_innermost_cause_is_the_reason() -> None:
    error = RuntimeError("export failed")
    error.__cause__ = NotImplementedError("complex numbers\nand a stack trace")
    assert onnx_runtime.reason_of(error) == "NotImplementedError: complex numbers"
    long = onnx_runtime.reason_of(ValueError("x" * 1000))
    assert long == f"ValueError: {'x' * onnx_runtime.LONGEST_REASON}..."


def test_exporters_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[str] = []

    def attempt(_: Path, exporter: str, *__: object) -> str:
        tried.append(exporter)
        return f"{exporter} fails" if fails else ""

    monkeypatch.setattr(onnx_runtime, "attempt", attempt)
    fails = True
    with pytest.raises(onnx_runtime.CannotRun) as found:
        onnx_runtime.export(tmp_path, SHAPE, tmp_path / "model.onnx")
    assert str(found.value) == (
        "cannot be exported: torch.export: torch.export fails; trace: trace fails"
    )
    fails = False
    onnx_runtime.export(tmp_path, Shape("TFT", 12), tmp_path / "model.onnx")
    assert tried == ["torch.export", "trace", "trace"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('progress')", ""),
        ("from pathlib import Path; Path('model.reason').write_text('no operator')", "no operator"),
        ("import sys; sys.exit(3)", "the process ended with status 3"),
        ("import time; time.sleep(60)", "not done in 1 s"),
    ],
)
def test_export_that_crashes_or_hangs_is_a_reason(
    program: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A python that starts needs some 0.05 s, so that only the sleeping one is stopped.
    monkeypatch.setattr(onnx_runtime, "EXPORT_LIMIT_SECONDS", 1 if "sleep" in program else 60)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(program)
    found = onnx_runtime.attempt(script, "trace", SHAPE, tmp_path / "model.onnx")
    assert found == reason
    assert not onnx_runtime.reason_path(tmp_path / "model.onnx").exists()


def test_exported_function_takes_the_past_alone() -> None:
    model = Linear(SHAPE)
    inputs, _ = training_pair.windows(SHAPE)
    found = onnx_runtime.ForecastOfPast(model)(inputs["insample_y"])
    assert torch.equal(found, model(inputs))


def test_row_keeps_a_forecast() -> None:
    for row in (forecast(SHAPE), forecast(SHAPE, missing="cannot be exported: x")):
        assert result.inference_from_row(json.loads(json.dumps(row.row()))) == row


def test_forecast_must_be_faster_than_every_other_side() -> None:
    verdicts = {
        faster: [line.verdict for line in targets.forecast_lines([forecast(SHAPE, faster)])]
        for faster in (2.0, 1.9, 0.9)
    }
    assert verdicts == {
        2.0: ["pass", "pass"],
        1.9: ["pass", "SHORTFALL"],
        0.9: ["SHORTFALL", "SHORTFALL"],
    }


def test_side_that_cannot_run_is_shown_with_its_reason() -> None:
    reason = "cannot be exported: trace: an error"
    rows = [forecast(replace(SHAPE, batch=b), missing=reason) for b in (1, 2)]
    rows.append(forecast(replace(SHAPE, batch=3)))
    lines = targets.forecast_lines(rows)
    assert [line.verdict for line in lines[:2]] == ["pass", "not measured"]
    assert lines[1].note == reason
    text = inference_tables.table(rows)
    assert text.count("cannot run") == 2
    assert f"- PatchTST, neuralforecast in ONNX Runtime: {reason}" in text
    assert "(L 12 batch 1, L 12 batch 2)" in text
    assert "4 of 4 targets reached; 2 not measured." in text


def test_record_keeps_forecasts_and_the_pages_show_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"where": "a machine", "rounds": 15, "machine": {"commit": "aaaaaaa"}}
    rows = [forecast(shape) for shape in shapes.inference_plan()]
    record = records.Record({records.MODELS: about}, [], whole_run(), [], rows)
    path, page = tmp_path / "record.json", tmp_path / "page.md"
    record.write(path, short=True)
    assert records.read(path) == record
    assert records.Record({}, []).merged(record).inference == rows
    assert record.merged(records.Record({"avx2": {}}, [])).inference == rows
    newer = records.Record({records.MODELS: about}, [], whole_run())
    assert record.merged(newer).inference == []

    assert inference_tables.table(rows) in run_tables.page(record, [])
    assert len(model_report.lines(record)) == 21 * 3 + 18 + 3 + 24 * 2
    page.write_text("<!-- table: inference of record -->\n<!-- end of table -->\n")
    tables.show_recorded(["models", "inference"], path, [page])
    assert "Measured: a machine." in page.read_text()
    assert page.read_text().count("\n| ") == 1 + len(rows)
    assert "48 of 48 targets reached." in capsys.readouterr().out
