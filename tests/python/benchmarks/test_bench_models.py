"""The comparison with neuralforecast, without it: targets, records, step and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench.common import timing
from bench.models import shapes, step_memory, step_tables, training_pair
from bench.models import targets as model_targets
from bench.models.result import ModelResult
from bench.models.shapes import Shape
from bench.report import pictures, records, run_tables

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / "bench"

pytestmark = pytest.mark.once


def result(shape: Shape, faster: float = 4.0, share: float = 0.25) -> ModelResult:
    """The result if the original takes one second and 1 GB."""
    return ModelResult(
        shape=shape,
        rounds=15,
        seconds={"ours": 1 / faster, "neuralforecast": 1.0},
        ratio=(0.9 * faster, faster, 1.1 * faster),
        difference=1e-6,
        bytes={"ours": int(share * 1e9), "neuralforecast": 10**9},
    )


def whole_run(**figures: float) -> list[ModelResult]:
    return [result(shape, **figures) for shape in shapes.plan()]


def test_plan_has_each_model_at_each_length_and_itransformer_with_few_and_many_series() -> None:
    found = [(shape.model, shape.length, shape.series) for shape in shapes.plan()]
    others = [(m, n, 1) for m in shapes.MODELS[:-1] for n in (96, 336, 1024)]
    assert shapes.MODELS[-1] == "iTransformer"
    series = [("iTransformer", n, count) for count in (21, 321) for n in (96, 336, 1024)]
    assert sorted(found) == sorted(others + series)
    assert {(shape.batch, shape.horizon) for shape in shapes.plan()} == {(32, 96)}


def test_flash_is_on_where_it_leaves_results_unchanged() -> None:
    off = {shape.model for shape in shapes.plan() if not shape.flash}
    assert off == {"Autoformer", "FEDformer"}


@pytest.mark.parametrize(
    ("faster", "share", "verdicts"),
    [
        (1.5, 1.0, ["pass", "pass"]),
        (1.499, 1.0, ["SHORTFALL", "pass"]),
        (9.0, 1.001, ["pass", "SHORTFALL"]),
    ],
)
def test_each_shape_has_a_target_for_time_and_one_for_memory(
    faster: float, share: float, verdicts: list[str]
) -> None:
    found = model_targets.lines([result(Shape("PatchTST", 96), faster, share)])[:2]
    assert [line.verdict for line in found] == verdicts


@pytest.mark.parametrize("model", shapes.MODELS)
@pytest.mark.parametrize(("length", "wanted"), [(96, 1.0), (336, 0.5), (1024, 0.5)])
def test_every_model_must_halve_the_memory_from_the_second_length_on(
    model: str, length: int, wanted: float
) -> None:
    line = model_targets.memory_line(result(Shape(model, length), share=0.51))
    assert line.wanted == wanted
    assert line.verdict == ("SHORTFALL" if wanted == 0.5 else "pass")


def test_mean_is_geometric_and_needs_a_whole_run() -> None:
    found = whole_run(faster=2.0)
    half = len(found) // 2
    found = [result(r.shape, 8.0) if i < half else r for i, r in enumerate(found)]
    expected = 8 ** (half / len(found)) * 2 ** (1 - half / len(found))
    assert model_targets.mean_line(found).figure == pytest.approx(expected)
    assert model_targets.mean_line(found[1:]).verdict == "not measured"


def test_unmeasured_memory_is_reported_as_not_measured() -> None:
    unmeasured = replace(result(Shape("TFT", 96)), bytes={})
    assert model_targets.memory_line(unmeasured).verdict == "not measured"
    assert "not measured" in step_tables.table([unmeasured])


def test_record_keeps_the_models(tmp_path: Path) -> None:
    run = {"where": "a machine", "rounds": 15}
    record = records.Record({records.MODELS: run}, [], whole_run())
    record.write(tmp_path / "record.json", short=True)
    assert records.read(tmp_path / "record.json") == record
    lines = (tmp_path / "record.json").read_text().splitlines()
    assert sum('"model":' in line for line in lines) == len(shapes.plan())


def test_new_run_of_the_models_replaces_the_models_only() -> None:
    older = records.Record({"avx2": {"where": "a"}, records.MODELS: {}}, [], whole_run())
    newer = records.Record({records.MODELS: {"where": "b"}}, [], whole_run(faster=5.0))
    merged = older.merged(newer)
    assert merged.runs == {"avx2": {"where": "a"}, records.MODELS: {"where": "b"}}
    assert merged.models == newer.models
    assert newer.merged(records.Record({"avx2": {}}, [])).models == newer.models
    assert merged.isas == ["avx2"]


def test_page_and_picture_show_the_models(tmp_path: Path) -> None:
    found = [*whole_run()[:-1], result(shapes.plan()[-1], faster=1.2)]
    record = records.Record({records.MODELS: {"where": "a machine"}}, [], found)
    page = run_tables.page(record, [])
    assert page.count("SHORTFALL") == 2  # its row, and the sentence
    assert all(f"| {model} " in page for model in shapes.MODELS)
    assert [p.name for p in pictures.draw(record, tmp_path)] == ["models.png"]


def test_interleaved_does_not_repeat_a_long_warm_up_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG_SECONDS", 0.01)
    calls: list[int] = []

    def long() -> None:
        calls.append(1)
        time.sleep(0.02)

    timing.interleaved({"long": long}, rounds=2)
    assert len(calls) == 3


class Linear(nn.Module):
    """Forecasts by one product; keeps `kept` floats per window for the backward."""

    def __init__(self, shape: Shape, kept: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(shape.length, shape.horizon)
        self.kept = kept

    def forward(self, windows: dict[str, Tensor | None]) -> Tensor:
        past = windows["insample_y"]
        out = self.layer(past.transpose(1, 2)).transpose(1, 2)
        if self.kept:
            rows = out.mean((1, 2)).unsqueeze(1).expand(-1, self.kept)
            out = out + rows.exp().sum()  # exp saves its result
        return out


def test_windows_have_the_given_shape_and_are_the_same_for_both_sides() -> None:
    shape = Shape("iTransformer", 12, series=3, batch=2, horizon=5)
    inputs, future = training_pair.windows(shape)
    assert inputs["insample_y"].shape == inputs["insample_mask"].shape == (2, 12, 3)
    assert future.shape == (2, 5, 3)
    assert torch.equal(future, training_pair.windows(shape)[1])


def test_step_is_forward_backward_and_adam() -> None:
    shape = Shape("PatchTST", 12, batch=2, horizon=5)
    model = Linear(shape).eval()
    before = [p.detach().clone() for p in model.parameters()]
    training_pair.Step(model, *training_pair.windows(shape))()
    assert model.training
    for old, new in zip(before, model.parameters(), strict=True):
        moved = (new - old).abs()[new.grad != 0]
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-4), rtol=1e-2, atol=1e-6)


@pytest.mark.serial
def test_step_memory_includes_what_the_backward_needs() -> None:
    shape = Shape("PatchTST", 12, batch=32, horizon=5)
    kept = (64 << 20) // shape.batch // 4  # 64 MiB in all
    least = step_memory.step_memory(Linear(shape, kept), shape)
    # The result of exp, and in the backward its gradient.
    assert 64 << 20 <= least <= 3 * (64 << 20)
    assert step_memory.step_memory(Linear(shape), shape) < 8 << 20


def test_fourier_index_is_read_from_the_original() -> None:
    def attention(**index: list[int]) -> SimpleNamespace:
        return SimpleNamespace(inner_correlation=SimpleNamespace(**index))

    layer = SimpleNamespace(
        self_attention=attention(index=[1]), cross_attention=attention(index_q=[2], index_kv=[3])
    )
    original = SimpleNamespace(
        encoder=SimpleNamespace(attn_layers=[SimpleNamespace(attention=attention(index=[0]))]),
        decoder=SimpleNamespace(layers=[layer]),
    )
    found = training_pair.fourier_index(original)
    fixture = ROOT / "tests" / "fixtures" / "fedformer_random_futr_mq.json"
    assert found.keys() == json.loads(fixture.read_text())["fourier_index"].keys()
    assert [*found.values()] == [[0], [1], [2], [3]]


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_missing_neuralforecast_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    found = run("models/compare.py", "--quick")
    assert found.returncode == 1
    assert "expected neuralforecast 3.3.0" in found.stderr
    assert "make bench" in found.stderr
    found = run("run.py", f"--originals={tmp_path / 'python'}")
    assert found.returncode == 1
    assert str(tmp_path / "python") in found.stderr
    assert "--only attention" in found.stderr


@pytest.mark.parametrize(
    "options", [("--only=models", "--isa=avx2"), ("--record", "--quick"), ("--strict", "--quick")]
)
def test_contradicting_options_are_rejected(options: tuple[str, ...]) -> None:
    found = run("run.py", *options)
    assert found.returncode == 2
    assert "expected" in found.stderr
