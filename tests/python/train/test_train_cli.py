"""The command line of flash_train: help, errors, progress, reports, and reloaded models."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from support.forecaster_runs import (
    SMALL,
    Training,
    day,
    error_of,
    executable,
    run,
    small,
    train,
    write_waves,
)
from support.tolerances import TRAINING_LOSS_FLOAT32

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """One training with flash attention, for tests that only read its results."""
    return train(tmp_path_factory.mktemp("flash"))


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A valid CSV file."""
    return write_waves(tmp_path / "waves.csv")


def test_help_lists_commands_and_examples():
    process = run("--help")
    assert process.returncode == 0
    for command in (*SMALL, "evaluate", "predict", "resume"):
        assert re.search(rf"^  {command} ", process.stdout, re.MULTILINE), command
    assert "flash_train PatchTST data/seattle-weather.csv --target" in process.stdout


@pytest.mark.parametrize("model", SMALL)
def test_model_help_lists_its_options_with_defaults(model: str):
    process = run(model, "--help")
    assert process.returncode == 0
    shared = ("--target", "--loss", "--attention", "--season", "--seed", "--output", "--report")
    for option in (*SMALL[model], *shared, "--forecast-png", "--gradient-checkpointing"):
        assert option in process.stdout
    assert ("--patch-len" in process.stdout) == (model == "PatchTST")
    assert ("--hist-exog" in process.stdout) == (model == "TFT")
    assert "See the model's header" not in process.stdout, "an option has no text"
    dropout = {"PatchTST": "0.2", "Autoformer": "0.05", "Informer": "0.05", "FEDformer": "0.05"}
    # Versions of CLI11 differ in how they write a default.
    assert re.search(rf"--dropout FLOAT( \[|=){dropout.get(model, '0.1')}\b", process.stdout)
    scaler = "robust" if model == "TFT" else "identity"
    assert re.search(rf"--scaler-type TEXT\S*( \[|=){scaler}\b", process.stdout)


def test_report_holds_losses_errors_time_and_memory(training: Training):
    report = training.report
    epochs = report["training"]["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    best = min(epochs, key=lambda epoch: epoch["validation_loss"])
    assert report["training"]["best_epoch"] == best["epoch"]
    assert report["training"]["seconds"] >= sum(epoch["seconds"] for epoch in epochs) * 0.99
    assert report["memory_peak_bytes"] >= report["memory_before_bytes"] > 0
    assert report["attention"] == "flash"
    assert report["model"] == "PatchTST"
    assert report["options"]["hidden_size"] == 8
    for epoch in epochs:
        assert epoch["validation_mae"] == pytest.approx(epoch["validation_loss"], rel=1e-5)
        assert epoch["validation_mse"] > 0
    for name in ("model", "naive", "seasonal_naive"):
        assert 0 < report["test"][name]["mae"]
        assert 0 < report["test"][name]["mse"]
    assert set(report["test"]["mae_in_units"]) == {"up", "down"}


def test_errors_are_printed_beside_the_naive_forecasts(training: Training):
    text = training.process.stdout
    test = training.report["test"]
    for title, errors in (
        ("PatchTST, flash attention", test["model"]),
        ("naive (last value)", test["naive"]),
        ("seasonal naive (last 7 rows)", test["seasonal_naive"]),
    ):
        row = re.search(re.escape(title) + r" +([0-9.]+) +([0-9.]+)", text)
        assert row, text
        assert row.groups() == (f"{errors['mae']:.4f}", f"{errors['mse']:.4f}")


def test_progress_is_a_line_per_epoch_outside_a_terminal(training: Training):
    lines = training.process.stderr.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(
            rf"epoch {number}/3  step \d+  train loss \d+\.\d+  validation loss \d+\.\d+"
            r"( \(best\))?  \d+ s, \d+ s left",
            line,
        )


def test_progress_is_rewritten_in_place_on_a_terminal(waves: Path):
    ours, theirs = pty.openpty()
    command = [str(executable()), "PatchTST", str(waves), "--target", "up", *small()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end of the terminal is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=300) == 0
    assert re.search(rb"\repoch 1/3  step 1/\d+  loss \d+\.\d+  \d+ s left\x1b\[K", shown)


def test_flash_and_standard_attention_train_alike(training: Training, tmp_path: Path):
    standard = train(tmp_path, attention="standard").report
    flash = training.report
    pairs = zip(flash["training"]["epochs"], standard["training"]["epochs"], strict=True)
    for ours, reference in pairs:
        for loss in ("train_loss", "validation_loss"):
            assert ours[loss] == pytest.approx(reference[loss], abs=TRAINING_LOSS_FLOAT32)
    mae = standard["test"]["model"]["mae"]
    assert flash["test"]["model"]["mae"] == pytest.approx(mae, abs=TRAINING_LOSS_FLOAT32)
    assert flash["test"]["naive"] == standard["test"]["naive"]


def test_training_is_reproducible_from_the_seed(training: Training, tmp_path: Path):
    for folder in ("same", "other"):
        (tmp_path / folder).mkdir()
    same = train(tmp_path / "same").report
    other = train(tmp_path / "other", seed=2).report
    losses = [epoch["train_loss"] for epoch in training.report["training"]["epochs"]]
    assert [epoch["train_loss"] for epoch in same["training"]["epochs"]] == losses
    assert [epoch["train_loss"] for epoch in other["training"]["epochs"]] != losses


def test_reloaded_model_has_the_same_test_error(training: Training, tmp_path: Path):
    report, forecast = tmp_path / "report.json", tmp_path / "forecast.csv"
    process = run(
        *("evaluate", training.model, training.csv, "--threads", 1),
        *("--report", report, "--forecast-csv", forecast),
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(report.read_text())["test"] == training.report["test"]
    assert forecast.read_text() == training.forecast.read_text()
    assert process.stderr == ""


def test_reloaded_model_can_use_the_other_attention(training: Training, tmp_path: Path):
    report = tmp_path / "report.json"
    process = run(
        *("evaluate", training.model, training.csv, "--threads", 1),
        *("--report", report, "--attention", "standard", "--season", 14),
    )
    assert process.returncode == 0, process.stderr
    test = json.loads(report.read_text())["test"]
    ours = training.report["test"]
    assert test["model"]["mae"] == pytest.approx(ours["model"]["mae"], abs=TRAINING_LOSS_FLOAT32)
    assert test["seasonal_naive"] != ours["seasonal_naive"]


def test_forecast_csv_covers_the_test_split_without_overlap(training: Training):
    with training.csv.open() as file:
        table = list(csv.DictReader(file))
    with training.forecast.open() as file:
        forecast = list(csv.DictReader(file))
    row_of = {row["day"]: number for number, row in enumerate(table)}
    first = 128  # 70 % and 10 % of 160 rows come before
    for column in ("up", "down"):
        rows = [row for row in forecast if row["column"] == column]
        assert [row_of[row["time"]] for row in rows] == list(range(first, 160))
        for number, row in enumerate(rows):
            # Values from the table are written exactly, although the model computes in float32.
            assert float(row["truth"]) == float(table[first + number][column])
            assert float(row["naive"]) == float(table[first + number // 4 * 4 - 1][column])
            week = table[first + number // 4 * 4 - 7 + number % 4][column]
            assert float(row["seasonal_naive"]) == float(week)
            assert abs(float(row["forecast"])) < 100


@pytest.mark.parametrize("model", [model for model in SMALL if model != "PatchTST"])
def test_every_model_learns_and_reloads(model: str, tmp_path: Path):
    training = train(tmp_path, model)
    test = training.report["test"]
    assert (
        training.report["training"]["epochs"][-1]["train_loss"]
        < (training.report["training"]["epochs"][0]["train_loss"])
    )
    report = tmp_path / "again.json"
    process = run(
        *("evaluate", training.model, training.csv, "--threads", 1),
        *("--report", report),
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(report.read_text())["test"] == test


def test_gradient_checkpointing_does_not_change_losses(training: Training, tmp_path: Path):
    report = tmp_path / "report.json"
    process = run(
        *("PatchTST", training.csv, "--target", "up,down", *small()),
        *("--gradient-checkpointing", "--report", report),
    )
    assert process.returncode == 0, process.stderr
    ours = json.loads(report.read_text())["training"]["epochs"]
    for epoch, plain in zip(ours, training.report["training"]["epochs"], strict=True):
        assert epoch["train_loss"] == plain["train_loss"]
        assert epoch["validation_loss"] == plain["validation_loss"]


def test_prediction_intervals_and_their_coverage(tmp_path: Path):
    training = train(tmp_path, loss="StudentT", level="80,99")
    coverage = training.report["test"]["coverage"]
    assert list(coverage) == ["99", "80"]
    assert 0 < coverage["80"] <= coverage["99"] <= 1
    with training.forecast.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        names = ("forecast-lo-99", "forecast-lo-80", "forecast-median", "forecast-hi-80")
        values = [float(row[name]) for name in names]
        assert values == sorted(values)
    assert f"{100 * coverage['99']:.1f} % of the values were in the 99 % interval" in (
        training.process.stdout
    )


def write_shops(path: Path, rows: int = 120) -> Path:
    """A long table of two shops with exogenous columns, and four known future days."""
    lines = ["shop,day,sold,open,visitors,size"]
    for shop, size in (("north", 3), ("south", 5)):
        for row in range(rows + 4):
            is_open = int(row % 7 != 6)
            visitors = size * (10 + row % 5) * is_open
            known = (visitors // 2, visitors) if row < rows else ("", "")
            lines.append(f"{shop},{day(row)},{known[0]},{is_open},{known[1]},{size}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_long_table_with_exogenous_columns_is_forecast_past_its_end(tmp_path: Path):
    whole = write_shops(tmp_path / "shops.csv")
    known = tmp_path / "known.csv"
    lines = whole.read_text().splitlines()
    known.write_text("\n".join(line for line in lines if line.split(",")[2]) + "\n")
    model = tmp_path / "model.safetensors"
    process = run(
        *("TFT", known, "--target", "sold", "--id-column", "shop", "--time-column", "day"),
        *("--futr-exog", "open", "--hist-exog", "visitors", "--stat-exog", "size"),
        *(*small("TFT"), "--output", model),
    )
    assert process.returncode == 0, process.stderr
    assert "2 series" in process.stdout
    forecast = tmp_path / "forecast.csv"
    process = run("predict", model, whole, "--forecast-csv", forecast)
    assert process.returncode == 0, process.stderr
    with forecast.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["column"], row["time"]) for row in rows] == [
        (shop, day(row)) for shop in ("north", "south") for row in range(120, 124)
    ]
    assert "truth" not in rows[0]
    assert "expected 4 rows after the last known value of north, with open and an empty" in (
        error_of("predict", model, known, "--forecast-csv", forecast)
    )


def test_forecast_png_is_written(training: Training, tmp_path: Path):
    picture = tmp_path / "forecast.png"
    process = run("predict", training.model, training.csv, "--forecast-png", picture)
    assert process.returncode == 0, process.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--target is required"),
        (["--target", "up,left"], "expected one column left, got none; the file has the columns"),
        (["--target", "up,word"], 'line 2, column word: expected a finite number, got "calm"'),
        (["--target", "up", "--input-size", "120"], "expected at least 134 rows in the training"),
        (["--target", "up", "--season", "400"], "expected --season of at most the input size 365"),
        (["--target", "up", "--attention", "sparse"], "--attention: sparse not in {flash,standard"),
        (["--target", "up", "--loss", "Cauchy"], "--loss: Cauchy not in {"),
        (["--target", "up", "--epochs", "0"], "--epochs"),
        (["--target", "up", "--delta", "+-5"], "--delta: expected a finite number, got +-5"),
        (["--target", "up", "--dropuot", "0.5"], "--dropuot"),
        (
            ["--target", "up", "--input-size", "20", "--horizon", "4", "--n-heads", "129"],
            "expected hidden_size of at least n_heads, got hidden_size 128 and n_heads 129",
        ),
        (["--target", "up", "--futr-exog", "down"], "--futr-exog: PatchTST takes no such columns"),
        (
            ["--target", "up", "--train-rows", "90", "--validation-rows", "80"],
            "got 160 rows for parts of 90, 80",
        ),
        (["--target", "up", "--train-rows", "90"], "--train-rows requires --validation-rows"),
        (
            ["--target", "up", "--output", "/nonexistent/m.safetensors"],
            "/nonexistent is not writable",
        ),
        (["--target", "up", "--report", "/tmp"], "/tmp: expected a file to write, got a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_are_refused(waves: Path, arguments: list[str], expected: str):
    assert expected in error_of("PatchTST", waves, *arguments)


def test_invalid_commands_are_refused(training: Training, waves: Path):
    assert "A subcommand is required" in error_of()
    assert "No such file or directory" in error_of("evaluate", "/nonexistent.safetensors", waves)
    assert "expected the checkpoint of a training" in error_of("resume", training.model)
    assert "--forecast-csv or --forecast-png is required" in (
        error_of("predict", training.model, waves)
    )


def test_missing_csv_is_named(tmp_path: Path):
    path = tmp_path / "none.csv"
    error = error_of("TFT", path, "--target", "up")
    assert f"{path}: expected a CSV file, but it cannot be read: No such file" in error


def test_ragged_csv_error_names_the_line(waves: Path):
    lines = waves.read_text().splitlines()
    lines[41] += ",1"
    waves.write_text("\n".join(lines))
    error = error_of("TFT", waves, "--target", "up")
    assert f"flash_train: {waves}, line 42: expected 4 fields as in line 1, got 5" in error


def test_file_that_is_not_a_model_is_refused(training: Training):
    error = error_of("evaluate", training.csv, training.csv)
    assert "expected a JSON" in error or "expected a header of at most" in error


def test_truncated_model_is_refused(training: Training, tmp_path: Path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(training.model.read_bytes()[:-100])
    assert "the file is truncated or damaged" in error_of("evaluate", short, training.csv)


def test_demo_settings_beat_both_naive_forecasts(tmp_path: Path):
    """As docs/training.md claims for the weather table, here with a quarter of the epochs."""
    report = tmp_path / "report.json"
    data = Path(__file__).resolve().parents[3] / "data" / "seattle-weather.csv"
    process = run(
        *("PatchTST", data, "--target", "temp_max,temp_min", "--hidden-size", 16),
        *("--linear-hidden-size", 32, "--n-heads", 4, "--encoder-layers", 2, "--stride", 3),
        *("--dropout", 0.5, "--epochs", 2, "--threads", 1, "--report", report),
    )
    assert process.returncode == 0, process.stderr
    test = json.loads(report.read_text())["test"]
    for error in ("mae", "mse"):
        assert test["model"][error] < test["naive"][error]
        assert test["model"][error] < test["seasonal_naive"][error]
