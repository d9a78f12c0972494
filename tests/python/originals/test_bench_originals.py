"""The comparisons of `make bench` with neuralforecast's own models."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.test_bench_etth1 import SETTINGS, assert_both_sides_train_alike
from benchmarks.test_bench_models import records, run, shapes

pytestmark = pytest.mark.once


@pytest.mark.parametrize("model", SETTINGS)
def test_both_sides_train_alike_without_dropout(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_both_sides_train_alike(model, tmp_path, capsys)


def test_every_model_is_measured_against_its_original(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    options = ("--quick", "--part=training", "--rounds=3", "--no-memory", f"--json={path}")
    found = run("models/compare.py", *options)
    assert found.returncode == 0, found.stderr
    rows = records.read(path).models
    assert [row.shape.model for row in rows] == list(shapes.MODELS)
    assert max(row.difference for row in rows) < 1e-4
    # Every product has a formula. So small a step takes several times its products.
    assert all(row.floor.over["fused"][1] > 1 for row in rows)


def test_forecast_is_measured_against_the_original_and_its_export(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    options = ("--quick", "--part=inference", "--only=PatchTST", "--rounds=3", f"--json={path}")
    found = run("models/compare.py", *options)
    assert found.returncode == 0, found.stderr
    (row,) = records.read(path).inference
    assert row.missing == {}
    assert row.ratio.keys() == row.difference.keys() == {"neuralforecast", "onnx"}
    # Another order of summation in float32.
    assert max(row.difference.values()) < 1e-4


def test_attention_of_transformers_is_measured_beside_its_own() -> None:
    options = ("--lengths=32", "--width=64", "--layers=1", "--rounds=3", "--seconds=1")
    found = run("models/attention_implementations.py", *options)
    assert found.returncode == 0, found.stderr
    rows = [line.split("|") for line in found.stdout.splitlines() if line.startswith("| ")]
    # Steps and prefill of six models, decode of four, in two dtypes.
    assert len(rows) == 1 + 2 * (2 * 6 + 4)
    for name in ("Llama", "BERT, padded", "gpt-oss"):
        cells = next(row for row in rows if row[1].strip() == name)
        assert ("x (" in cells[6]) == (name != "gpt-oss")  # "sdpa" has no sinks
        assert "x (" in cells[7] and "iB" in cells[8]
