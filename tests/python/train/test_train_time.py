"""The time column of flash_train: the order of rows, steps and gaps, and errors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.forecaster_runs import day, error_of, run, small, train, write_waves

pytestmark = pytest.mark.once


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A valid CSV file."""
    return write_waves(tmp_path / "waves.csv")


def shuffled(path: Path) -> Path:
    """A copy of the table with its rows in a random order."""
    header, *rows = path.read_text().splitlines()
    random.Random(5).shuffle(rows)
    other = path.with_name("shuffled.csv")
    other.write_text("\n".join([header, *rows]) + "\n")
    return other


def edited(path: Path, line: int, old: str, new: str) -> Path:
    """Replaces `old` by `new` in one line, counted from 1."""
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path, *options: object) -> str:
    """The error for a table that flash_train refuses."""
    return error_of("PatchTST", path, "--target", "up", *small(), *options)


def test_unordered_rows_are_refused(waves: Path):
    path = shuffled(waves)
    error = refusal(path)
    assert f"{path}, line " in error
    assert "expected rows in order of time, got 2020-" in error
    assert "--sort puts them in order" in error


def test_sort_option_restores_the_order_of_rows(tmp_path: Path):
    training = train(tmp_path)
    path = shuffled(training.csv)
    model, forecast = tmp_path / "again", tmp_path / "again.csv"
    process = run(
        *("PatchTST", path, "--target", "up,down", *small(), "--sort"),
        *("--output", model, "--forecast-csv", forecast),
    )
    assert process.returncode == 0, process.stderr
    assert forecast.read_bytes() == training.forecast.read_bytes()
    # The model file stores --sort. A model trained without it needs the option.
    for arguments in (
        ("evaluate", model, path, "--forecast-csv", tmp_path / "evaluated.csv"),
        ("evaluate", training.model, path, "--sort", "--forecast-csv", tmp_path / "evaluated.csv"),
    ):
        process = run(*arguments)
        assert process.returncode == 0, process.stderr
        assert (tmp_path / "evaluated.csv").read_bytes() == forecast.read_bytes()
    assert "--sort puts them in order" in error_of("evaluate", training.model, path)
    ahead = tmp_path / "ahead.csv"
    process = run("predict", training.model, path, "--sort", "--forecast-csv", ahead)
    assert process.returncode == 0, process.stderr
    assert ahead.read_text().splitlines()[1].startswith("up,+1,")


def test_duplicate_time_error_names_the_line(waves: Path):
    error = refusal(edited(waves, 30, day(28), day(27)))
    assert f"{waves}, line 30, column day: expected each time once, got {day(27)} as in" in error


def test_invalid_time_error_names_the_line(waves: Path):
    error = refusal(edited(waves, 30, day(28), "yesterday"))
    assert f"{waves}, line 30, column day: expected a date such as 2012-01-31, a date" in error
    assert 'or an integer, got "yesterday"' in error


def test_time_step_and_gaps_are_reported(waves: Path):
    arguments = ("PatchTST", waves, "--target", "up", *small(epochs=1))
    first, last = day(0), day(159)
    assert f"Time: column day, {first} to {last}, step 1 day\n" in run(*arguments).stdout
    lines = waves.read_text().splitlines()
    del lines[40:42], lines[90]
    waves.write_text("\n".join(lines) + "\n")
    assert (
        f"Time: column day, {first} to {last}, step 1 day; 2 gaps, the first of 3 days before "
        "line 41\n"
    ) in run(*arguments).stdout


def test_hourly_monthly_and_integer_times(tmp_path: Path):
    for times, step in (
        ([f"{day(row // 24)} {row % 24:02}:00:00" for row in range(160)], "1 hour"),
        ([f"{1900 + row // 12}-{row % 12 + 1:02}-01" for row in range(160)], "1 month"),
        ([str(1900 + row) for row in range(160)], "1"),
    ):
        path = tmp_path / "table.csv"
        rows = [f"{time},{row % 7}" for row, time in enumerate(times)]
        path.write_text("\n".join(["time,value", *rows]) + "\n")
        process = run("PatchTST", path, "--target", "value", *small(epochs=1))
        assert process.returncode == 0, process.stderr
        line = f"Time: column time, {times[0]} to {times[-1]}, step {step}\n"
        assert line in process.stdout


def test_table_without_times_needs_no_time_column_option(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["value,word", *(f"{row % 7},calm" for row in range(160))]) + "\n")
    arguments = ("PatchTST", path, "--target", "value", *small(epochs=1))
    assert "give --no-time-column where the rows are in order of time" in error_of(*arguments)
    model, forecast = tmp_path / "model", tmp_path / "forecast.csv"
    process = run(*arguments, "--no-time-column", "--output", model, "--forecast-csv", forecast)
    assert process.returncode == 0, process.stderr
    assert "Time: none; the rows are in the order of the file\n" in process.stdout
    assert forecast.read_text().splitlines()[1].startswith("value,129,2,")
    assert run("evaluate", model, path).returncode == 0
    for option in (("--sort",), ("--time-column", "word")):
        assert "excludes" in error_of(*arguments, "--no-time-column", *option)


def write_places(path: Path, southern_days: list[str]) -> Path:
    """A long table of two places, the first with a row for each of 160 days."""
    rows = [f"{day(row)},north,{row % 7}" for row in range(160)]
    rows += [f"{time},south,{row % 5}" for row, time in enumerate(southern_days)]
    path.write_text("\n".join(["day,place,value", *rows]) + "\n")
    return path


def test_multivariate_series_need_the_same_times(tmp_path: Path):
    path = write_places(tmp_path / "table.csv", [day(row + 1) for row in range(160)])
    arguments = (path, "--target", "value", "--id-column", "place")
    assert (
        "expected series with the same times, because the model forecasts them together, got "
        f"{day(1)} in row 1 of south and {day(0)} in that of north"
    ) in error_of("iTransformer", *arguments, *small("iTransformer"))
    process = run("PatchTST", *arguments, *small(epochs=1))
    assert process.returncode == 0, process.stderr


def test_multivariate_series_need_the_same_time_in_every_row(tmp_path: Path):
    path = write_places(tmp_path / "table.csv", [day(row + (row >= 40)) for row in range(160)])
    assert f"got {day(41)} in row 41 of south and {day(40)} in that of north" in error_of(
        *("iTransformer", path, "--target", "value", "--id-column", "place"),
        *small("iTransformer", epochs=1),
    )
