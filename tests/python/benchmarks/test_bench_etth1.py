"""The trainings on ETTh1, without neuralforecast: data, schedule, turns and table."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_attention import models

from bench.common import progress
from bench.forecasting import etth1, etth1_data, etth1_results, plain_training
from bench.forecasting.etth1_data import ETTH1, Split, Windows
from bench.forecasting.etth1_results import TrainingResult
from bench.forecasting.etth1_settings import SETTINGS, Settings
from bench.forecasting.plain_training import Errors, PlainTraining
from bench.forecasting.training_process import TrainingProcess
from bench.models import training_pair
from support.forecaster_runs import executable, write_waves

pytestmark = pytest.mark.once

WAVES = Split(("up", "down"), train=100, validation=30, test=30)


def small(model: str) -> Settings:
    """A small network for WAVES, without dropout, whose masks differ between the sides."""
    found = SETTINGS[model]
    sizes = {"hidden_size": 8, "n_heads": 2, "dropout": 0.0}
    few = {"iTransformer": {"d_ff": 16}, "PatchTST": {"linear_hidden_size": 16, "patch_len": 7}}
    return replace(
        found,
        input_size=28,
        horizon=4,
        season=7,
        options=found.options | sizes | few[model],
        batch_size=16,
        # The bias before PatchTST's batch normalization has no gradient but rounding, of which Adam
        # makes full steps. The running means lag behind it, so the steps must be small.
        learning_rate=1e-3 if model == "PatchTST" else 1e-2,
        decay_after=1,
    )


def ours(name: str, random_seed: int, **options: Any) -> torch.nn.Module:
    """Replaces neuralforecast's model by ours, with the same weights and results."""
    torch.manual_seed(random_seed)
    model: torch.nn.Module = getattr(models, name)(**options, use_flash_attention=True)
    return model


def test_numbers_of_windows_are_those_of_the_papers() -> None:
    series = torch.zeros(7, ETTH1.rows + 3020)  # the file has rows that no part uses
    single = etth1_data.parts(series, ETTH1, 336, 96, together=False)
    assert [len(single.train), len(single.validation), len(single.test)] == [57463, 19495, 19495]
    together = etth1_data.parts(series, ETTH1, 96, 96, together=True)
    assert [len(together.train), len(together.validation), len(together.test)] == [8449, 2785, 2785]


def test_inputs_of_validation_and_test_reach_back_but_never_ahead() -> None:
    series = torch.arange(12.0)[None]
    found = etth1_data.parts(series, Split(("a",), 6, 3, 3), 3, 2, together=True)
    for windows, first, last in (
        (found.train, 3, 5),
        (found.validation, 6, 8),
        (found.test, 9, 11),
    ):
        past, future = windows.batch(torch.arange(len(windows)))
        assert torch.equal(past[:, -1] + 1, future[:, 0])
        assert (future[0, 0].item(), future[-1, -1].item()) == (first, last)


@pytest.mark.parametrize("together", [True, False])
def test_windows_hold_the_rows_of_their_series(together: bool) -> None:
    series = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])
    windows = Windows(series, 0, 5, 2, 1, together)
    past, future = windows.batch(torch.tensor([1, 2]))
    if together:
        assert past.tolist() == [[[1, 11], [2, 12]], [[2, 12], [3, 13]]]
        assert future.tolist() == [[[3, 13]], [[4, 14]]]
    else:  # windows that start at one row are adjacent
        assert past.tolist() == [[[10], [11]], [[1], [2]]]
        assert future.tolist() == [[[12]], [[3]]]
    assert past.is_contiguous() and future.is_contiguous()


def test_series_are_standardized_over_the_training_part() -> None:
    split = Split(("a", "b"), 50, 10, 10)
    series = torch.randn(2, 70, dtype=torch.float64) * 3 + 5
    series[:, 50:] += 100
    found = etth1_data.standardized(series, split)
    assert found.dtype == torch.float32
    train = found[:, :50].double()
    torch.testing.assert_close(train.mean(1), torch.zeros(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(train.square().mean(1), torch.ones(2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,c\n1,2\n", "without b"),
        ("a,b\n1,2\n", "at least 4 rows, found 1"),
        ("a,b\n1,2\n1,\n", "line 3: expected numbers"),
    ],
)
def test_unusable_file_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        etth1_data.read_series(path, Split(("a", "b"), 2, 1, 1))
    with pytest.raises(SystemExit, match="found none"):
        etth1_data.read_series(tmp_path / "nowhere.csv", ETTH1)


def test_learning_rate_decays_from_epoch_to_epoch() -> None:
    def rates(model: str, *epochs: int) -> list[float]:
        return [SETTINGS[model].learning_rate_of(epoch) for epoch in epochs]

    assert rates("iTransformer", 1, 2, 3, 10) == pytest.approx([1e-4, 1e-4, 5e-5, 1e-4 / 2**8])
    assert rates("PatchTST", 1, 4, 5, 32) == pytest.approx([1e-4, 1e-4, 9e-5, 1e-4 * 0.9**28])


@pytest.mark.parametrize("model", SETTINGS)
def test_flash_train_has_every_option_that_is_used(model: str) -> None:
    program = executable()
    text = subprocess.run([program, model, "--help"], check=True, capture_output=True, text=True)
    call = SETTINGS[model].command(program, Path("x.csv"), ETTH1, 1, 1, Path("x"))
    used = {word.split("=")[0] for word in call if word.startswith("--")}
    assert used - set(re.findall(r"--[\w-]+", text.stdout)) == set()
    assert "--target=HUFL,HULL,MUFL,MULL,LUFL,LULL,OT" in call


def assert_both_sides_train_alike(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checks weights, batches, losses, rates, validation, choice of the epoch and test errors."""
    call = etth1.Call(small(model), write_waves(folder / "waves.csv"), WAVES, seed=3, epochs=3)
    found = etth1.train(call, executable(), progress.Progress([1.0] * 3))
    assert found.train_loss["ours"] == pytest.approx(found.train_loss["neuralforecast"], rel=1e-4)
    # A running mean lags by about ten steps of the learning rate: 1e-2 of activations of order 1.
    error = 2e-2 if model == "PatchTST" else 1e-3
    pairs = [[*found.validation[side], found.test[side].mse] for side in etth1_results.SIDES]
    assert pairs[0] == pytest.approx(pairs[1], rel=error)
    assert found.best_epoch["ours"] == found.best_epoch["neuralforecast"] == 3
    assert [len(found.seconds[side]) for side in etth1_results.SIDES] == [3, 3]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.match(rf"\[etth1 3/3, 0 s left\] {model}, seed 3, epoch 3/3: ", lines[-1])


@pytest.mark.parametrize("model", SETTINGS)
def test_both_sides_train_alike_without_dropout(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_pair, "create", ours)
    assert_both_sides_train_alike(model, tmp_path, capsys)


def test_different_network_is_rejected_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wider(name: str, **options: Any) -> torch.nn.Module:
        return ours(name, **(options | {"hidden_size": 16}))

    monkeypatch.setattr(training_pair, "create", wider)
    csv = write_waves(tmp_path / "waves.csv")
    call = etth1.Call(small("PatchTST"), csv, WAVES, seed=1, epochs=1)
    with pytest.raises(SystemExit, match="the same number of parameters"):
        etth1.train(call, executable(), progress.Progress([1.0]))


def test_weights_of_the_best_epoch_are_tested() -> None:
    class Scaled(torch.nn.Module):
        """Forecasts a multiple of the last value."""

        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, windows: dict[str, torch.Tensor | None]) -> torch.Tensor:
            past = windows["insample_y"]
            assert past is not None
            return self.factor * past[:, -1:]

    # The best factor is above 1 in the training part and 1 in the others: each epoch is worse.
    growing, steady = 1.1 ** torch.arange(40.0), torch.full((40,), 5.0)
    series = torch.cat([growing, steady])[None]
    found = etth1_data.parts(series, Split(("a",), 40, 20, 20), 4, 1, together=False)
    training = PlainTraining(Scaled(), replace(small("PatchTST"), horizon=1), found, seed=1)
    training.epoch()
    factor = training.best["factor"].item()
    training.epoch()
    training.epoch()
    assert training.best_epoch == 1
    assert training.test() == plain_training.model_errors(training.model, found.test, 16)
    assert training.model.state_dict()["factor"].item() == factor > 1


FAKE = """#!{python}
import sys, time
print("Training PatchTST on 12 windows of 3 series, 34 parameters, flash", flush=True)
for epoch in (1, 2):
    for _ in range(20):
        time.sleep(0.005)
        print("working", file=open({log!r}, "a"))
    line = f"epoch {{epoch}}/2  step 7  train loss 0.5  validation loss 0.{{epoch}} (best)  1 s"
    print(line, file=sys.stderr, flush=True)
time.sleep(0.1)
{last}
"""


def fake_program(folder: Path, last: str = "") -> tuple[list[str], Path]:
    """A program that prints what flash_train prints, and a file that grows while it works."""
    program, log = folder / "program", folder / "log"
    program.write_text(FAKE.format(python=sys.executable, log=str(log), last=last))
    program.chmod(0o755)
    log.touch()
    return [str(program)], log


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_process_works_only_in_its_turn(tmp_path: Path) -> None:
    command, log = fake_program(tmp_path)
    with TrainingProcess(command) as process:
        assert (process.windows, process.series, process.parameters) == (12, 3, 34)
        for epoch in (1, 2):
            assert process.epoch() < 20
            assert process.validation_loss == pytest.approx(epoch / 10)
            done = log.stat().st_size
            time.sleep(0.05)
            assert log.stat().st_size == done
        process.finish()
    assert log.read_text().count("working") == 40
    assert not alive(process.process.pid)


def test_process_is_ended_with_its_context(tmp_path: Path) -> None:
    command, _ = fake_program(tmp_path)
    with pytest.raises(KeyboardInterrupt), TrainingProcess(command) as process:
        raise KeyboardInterrupt
    assert not alive(process.process.pid)


def test_failure_of_the_process_is_reported_with_its_output(tmp_path: Path) -> None:
    command, _ = fake_program(tmp_path, last="sys.exit('no room left')")
    with pytest.raises(SystemExit, match="(?s)ended with status 1.*no room left"):
        with TrainingProcess(command) as process:
            process.epoch()
            process.epoch()
            process.finish()
    with pytest.raises(SystemExit, match="(?s)ended with status 1.*nowhere.csv"):
        TrainingProcess([str(executable()), "PatchTST", "nowhere.csv", "--target=a"])
    with pytest.raises(SystemExit, match="make build"):
        TrainingProcess([str(tmp_path / "missing")])


def result(seed: int = 1, faster: float = 3.0) -> TrainingResult:
    """The result if an epoch of ours takes ten seconds."""
    return TrainingResult(
        model="PatchTST",
        input_size=336,
        seed=seed,
        seconds={"ours": [10.0] * 4, "neuralforecast": [faster * x for x in (10.0, 9, 10, 11)]},
        best_epoch={"ours": 3, "neuralforecast": 4},
        train_loss={"ours": [0.5] * 4, "neuralforecast": [0.6] * 4},
        validation={"ours": [0.7] * 4, "neuralforecast": [0.8] * 4},
        test={"ours": Errors(0.25 * seed, 0.5), "neuralforecast": Errors(0.375, 0.625)},
    )


def test_table_has_a_row_per_side() -> None:
    text = re.sub(" +", " ", etth1_results.table([result()]))
    assert "| PatchTST | neuralforecast | 336 | 4 | 30 s | | | 4 | 0.6250 | 0.3750 |" in text
    assert (
        "| PatchTST | flash_train | 336 | 4 | 10 s | 3.00x | 2.78-3.22 | 3 | 0.5000 | 0.2500 |"
    ) in text


def test_seeds_share_a_row_with_mean_and_range() -> None:
    text = re.sub(" +", " ", etth1_results.table([result(1), result(2)]))
    assert text.count("PatchTST") == 2
    assert "| 3, 3 | 0.5000 (0.5000-0.5000) | 0.3750 (0.2500-0.5000) |" in text


def test_one_epoch_has_no_quartiles() -> None:
    one = replace(result(), seconds={"ours": [10.0], "neuralforecast": [25.0]})
    assert etth1_results.faster([one]) == (2.5, 2.5, 2.5)


def test_row_is_json() -> None:
    row = json.loads(json.dumps(result().row()))
    assert row["seconds"]["neuralforecast"] == [30.0, 27.0, 30.0, 33.0]
    assert row["test"]["ours"] == {"mae": 0.25, "mse": 0.5}


def test_plan_has_every_model_with_every_seed() -> None:
    def planned(*options: str) -> list[tuple[str, int, int]]:
        args: argparse.Namespace = etth1.parser().parse_args(["x.csv", *options])
        return [(call.settings.model, call.seed, call.epochs) for call in etth1.plan(args)]

    assert planned() == [("iTransformer", 1, 10), ("PatchTST", 1, 32)]
    assert planned("--models", "PatchTST", "--seeds", "1", "2", "--epochs", "3") == [
        ("PatchTST", 1, 3),
        ("PatchTST", 2, 3),
    ]
    with pytest.raises(SystemExit):
        planned("--epochs", "0")
