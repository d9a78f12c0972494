"""The forecasts that flash_train writes: their series, units and rows."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest

from support.forecaster_runs import (
    Training,
    day,
    error_of,
    run,
    small,
    train,
    with_zeros,
    write_waves,
)
from support.tolerances import FORECAST_FLOAT32

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """One short training."""
    return train(tmp_path_factory.mktemp("model"), epochs=1)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as dictionaries by column name."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def forecasts(model: Path, table: Path) -> list[dict[str, str]]:
    """The forecasts of the test split that `evaluate` writes."""
    path = model.with_suffix(".csv")
    process = run("evaluate", model, table, "--forecast-csv", path)
    assert process.returncode == 0, process.stderr
    return rows_of(path)


def test_forecasts_are_in_table_units(training: Training):
    """With a zero head PatchTST adds nothing to the last value: the naive forecast."""
    model = with_zeros(training, "model.head.linear.weight", "model.head.linear.bias")
    for row in forecasts(model, training.csv):
        assert float(row["forecast"]) == pytest.approx(float(row["naive"]), abs=FORECAST_FLOAT32)


def test_each_series_of_itransformer_has_its_own_forecast(tmp_path: Path):
    """With a zero projector iTransformer forecasts the mean of a series over the input window."""
    training = train(tmp_path, "iTransformer", epochs=1)
    rows = forecasts(with_zeros(training, "projector.weight", "projector.bias"), training.csv)
    table = rows_of(training.csv)
    first, horizon, seen = 128, 4, 28  # 70 % and 10 % of 160 rows come before
    for column in ("up", "down"):
        values = [float(row[column]) for row in table]
        own = [float(row["forecast"]) for row in rows if row["column"] == column]
        assert len(own) == 160 - first
        for number, forecast in enumerate(own):
            window = first + number // horizon * horizon
            mean = statistics.fmean(values[window - seen : window])
            assert forecast == pytest.approx(mean, abs=FORECAST_FLOAT32)


def test_names_with_commas_and_quotes_round_trip(tmp_path: Path):
    names = ['north, "old"', "south"]
    table, forecast = tmp_path / "table.csv", tmp_path / "forecast.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["day", "place", "value"])
        writer.writerows([day(row), name, row % 7] for name in names for row in range(160))
    process = run(
        *("PatchTST", table, "--target", "value", "--id-column", "place", *small(epochs=1)),
        *("--forecast-csv", forecast),
    )
    assert process.returncode == 0, process.stderr
    rows = rows_of(forecast)
    assert list(dict.fromkeys(row["column"] for row in rows)) == names
    for row in rows:
        assert None not in row  # DictReader's key for fields beyond the header
        assert row["time"].startswith("2020-")


def test_predict_needs_input_size_rows(training: Training, tmp_path: Path):
    forecast = tmp_path / "forecast.csv"
    short = write_waves(tmp_path / "short.csv", rows=27)
    error = error_of("predict", training.model, short, "--forecast-csv", forecast)
    assert "expected at least 28 rows of up, which the model looks back at, got 27" in error
    enough = write_waves(tmp_path / "enough.csv", rows=28)
    process = run("predict", training.model, enough, "--forecast-csv", forecast)
    assert process.returncode == 0, process.stderr
    assert [row["time"] for row in rows_of(forecast)] == ["+1", "+2", "+3", "+4"] * 2
