"""flash_train as a user meets it: help, errors, progress, reports, and models used again."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from forecaster_runs import SMALL, Training, error_of, executable, run, train, write_waves
from tolerances import TRAINING_LOSS_FLOAT32


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """One training with flash attention, for the tests that only look at its results."""
    return train(tmp_path_factory.mktemp("flash"))


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A good CSV."""
    return write_waves(tmp_path / "waves.csv")


def test_help_names_every_option_and_gives_examples():
    process = run("--help")
    assert process.returncode == 0
    for option in (*SMALL, "--columns", "--attention", "--season", "--seed", "--output"):
        assert option in process.stdout
    for option in ("--forecast-csv", "--report", "--evaluate", "--linear-hidden-size"):
        assert option in process.stdout
    assert "flash_train data/seattle-weather.csv --columns temp_max,temp_min" in process.stdout


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
    assert report["patches"] == (28 - 7) // 3 + 2
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
    settings = [str(word) for pair in SMALL.items() for word in pair]
    command = [str(executable()), str(waves), "--columns", "up", *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal's other end has been closed
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


def test_the_seed_decides_everything(training: Training, tmp_path: Path):
    for folder in ("same", "other"):
        (tmp_path / folder).mkdir()
    same = train(tmp_path / "same").report
    other = train(tmp_path / "other", seed=2).report
    losses = [epoch["train_loss"] for epoch in training.report["training"]["epochs"]]
    assert [epoch["train_loss"] for epoch in same["training"]["epochs"]] == losses
    assert [epoch["train_loss"] for epoch in other["training"]["epochs"]] != losses


def test_a_reloaded_model_has_the_same_test_error(training: Training, tmp_path: Path):
    report, forecast = tmp_path / "report.json", tmp_path / "forecast.csv"
    process = run(
        *(training.csv, "--evaluate", training.model, "--threads", 1),
        *("--report", report, "--forecast-csv", forecast),
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(report.read_text())["test"] == training.report["test"]
    assert forecast.read_text() == training.forecast.read_text()
    assert process.stderr == ""


def test_a_reloaded_model_may_use_the_other_attention(training: Training, tmp_path: Path):
    report = tmp_path / "report.json"
    process = run(
        *(training.csv, "--evaluate", training.model, "--threads", 1),
        *("--report", report, "--attention", "standard", "--season", 14),
    )
    assert process.returncode == 0, process.stderr
    test = json.loads(report.read_text())["test"]
    ours = training.report["test"]
    assert test["model"]["mae"] == pytest.approx(ours["model"]["mae"], abs=TRAINING_LOSS_FLOAT32)
    assert test["seasonal_naive"] != ours["seasonal_naive"]


def test_forecast_csv_covers_the_test_part_without_overlap(training: Training):
    with training.csv.open() as file:
        table = list(csv.DictReader(file))
    with training.forecast.open() as file:
        forecast = list(csv.DictReader(file))
    day = {row["day"]: number for number, row in enumerate(table)}
    first = 128  # 70 % and 10 % of 160 rows come before
    for column in ("up", "down"):
        rows = [row for row in forecast if row["column"] == column]
        assert [day[row["time"]] for row in rows] == list(range(first, 160))
        for number, row in enumerate(rows):
            # float32 windows of values of order 10, written with six digits
            truth = float(table[first + number][column])
            last = float(table[first + number // 4 * 4 - 1][column])
            week = float(table[first + number // 4 * 4 - 7 + number % 4][column])
            assert float(row["truth"]) == pytest.approx(truth, abs=1e-4)
            assert float(row["naive"]) == pytest.approx(last, abs=1e-4)
            assert float(row["seasonal_naive"]) == pytest.approx(week, abs=1e-4)
            assert abs(float(row["forecast"])) < 100


def test_columns_or_a_model_are_needed(waves: Path):
    assert "--columns (or --evaluate) is required" in error_of(waves)


@pytest.mark.parametrize("option", ["--columns", "--epochs", "--hidden-size", "--output"])
def test_a_model_answers_its_own_settings(option: str, training: Training):
    error = error_of(training.csv, "--evaluate", training.model, option, "5")
    assert f"{option}: cannot be given with --evaluate, which trains nothing" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--columns", "up,left"], "expected one column left, got none; the file has the columns"),
        (["--columns", "up,word"], 'line 2, column word: expected a finite number, got "calm"'),
        (["--columns", "up", "--input-size", "120"], "expected at least 134 rows in the training"),
        (["--columns", "up", "--season", "400"], "expected --season of at most the input size 365"),
        (
            ["--columns", "up", "--attention", "sparse"],
            "--attention: sparse not in {flash,standard",
        ),
        (["--columns", "up", "--epochs", "0"], "--epochs"),
        (["--columns", "up", "--dropout", "1.5"], "--dropout: Value 1.5 not in range"),
        (["--columns", "up", "--dropuot", "0.5"], "--dropuot"),
        (
            ["--columns", "up", "--input-size", "20", "--horizon", "4", "--n-heads", "17"],
            "expected hidden_size of at least n_heads, got hidden_size 16 and n_heads 17",
        ),
        (
            ["--columns", "up", "--output", "/nonexistent/m.safetensors"],
            "/nonexistent is not writable",
        ),
        (["--columns", "up", "--report", "/tmp"], "/tmp: expected a file to write, got a folder"),
        (["--evaluate", "/nonexistent.safetensors"], "No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_words(waves: Path, arguments: list[str], expected: str):
    assert expected in error_of(waves, *arguments)


def test_a_missing_csv_is_named(tmp_path: Path):
    path = tmp_path / "none.csv"
    error = error_of(path, "--columns", "up")
    assert f"{path}: expected a CSV file, but it cannot be read: No such file" in error


def test_a_ragged_csv_is_refused_by_line(waves: Path):
    lines = waves.read_text().splitlines()
    lines[41] += ",1"
    waves.write_text("\n".join(lines))
    error = error_of(waves, "--columns", "up")
    assert f"flash_train: {waves}, line 42: expected 4 fields as in line 1, got 5" in error


def test_a_model_of_something_else_is_refused(training: Training):
    assert "expected a JSON" in error_of(training.csv, "--evaluate", training.csv) or (
        "expected a header of at most" in error_of(training.csv, "--evaluate", training.csv)
    )


def test_a_model_cut_off_is_refused(training: Training, tmp_path: Path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(training.model.read_bytes()[:-100])
    assert "the file is cut off or damaged" in error_of(training.csv, "--evaluate", short)


def test_the_demonstration_beats_both_naive_forecasts(tmp_path: Path):
    """docs/training.md promises as much for the weather table, here in a quarter of the epochs."""
    report = tmp_path / "report.json"
    data = Path(__file__).resolve().parents[2] / "data" / "seattle-weather.csv"
    settings = ("--columns", "temp_max,temp_min", "--epochs", 2, "--threads", 1)
    process = run(data, *settings, "--report", report)
    assert process.returncode == 0, process.stderr
    test = json.loads(report.read_text())["test"]
    assert test["model"]["mae"] < test["naive"]["mae"]
    assert test["model"]["mae"] < test["seasonal_naive"]["mae"]
    assert test["model"]["mse"] < test["naive"]["mse"]
    assert test["model"]["mse"] < test["seasonal_naive"]["mse"]
