"""flash_train and time: rows in any order are not called time, and what is known of it is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from forecaster_runs import day, error_of, run, small, train, write_waves


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A good CSV."""
    return write_waves(tmp_path / "waves.csv")


def shuffled(path: Path) -> Path:
    """The same table with its rows in a random order."""
    header, *rows = path.read_text().splitlines()
    random.Random(5).shuffle(rows)
    other = path.with_name("shuffled.csv")
    other.write_text("\n".join([header, *rows]) + "\n")
    return other


def edited(path: Path, line: int, old: str, new: str) -> Path:
    """The same table with a change in one of its lines, counted from 1."""
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path, *options: object) -> str:
    """Why a table is not trained on."""
    return error_of("PatchTST", path, "--target", "up", *small(), *options)


def test_rows_in_any_order_are_not_called_time(waves: Path):
    path = shuffled(waves)
    error = refusal(path)
    assert f"{path}, line " in error
    assert "expected rows in order of time, got 2020-" in error
    assert "--sort puts them in order" in error


def test_sorted_rows_train_as_if_they_had_been_in_order(tmp_path: Path):
    training = train(tmp_path)
    path = shuffled(training.csv)
    model, forecast = tmp_path / "again", tmp_path / "again.csv"
    process = run(
        *("PatchTST", path, "--target", "up,down", *small(), "--sort"),
        *("--output", model, "--forecast-csv", forecast),
    )
    assert process.returncode == 0, process.stderr
    assert forecast.read_bytes() == training.forecast.read_bytes()
    # The model remembers to sort; one that was trained on rows in order is told.
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


def test_a_time_that_is_there_twice_is_refused_by_line(waves: Path):
    error = refusal(edited(waves, 30, day(28), day(27)))
    assert f"{waves}, line 30, column day: expected each time once, got {day(27)} as in" in error


def test_what_is_no_time_is_refused_by_line(waves: Path):
    error = refusal(edited(waves, 30, day(28), "yesterday"))
    assert f"{waves}, line 30, column day: expected a date such as 2012-01-31, a date" in error
    assert 'or an integer, got "yesterday"' in error


def test_the_step_between_rows_and_gaps_are_reported(waves: Path):
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


def test_hours_months_and_integers_are_times_too(tmp_path: Path):
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


def test_a_table_without_times_has_to_be_called_one(tmp_path: Path):
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


def test_series_that_are_seen_together_have_the_same_times(tmp_path: Path):
    path = write_places(tmp_path / "table.csv", [day(row + 1) for row in range(160)])
    arguments = (path, "--target", "value", "--id-column", "place")
    assert (
        "expected series with the same times, because the model forecasts them together, got "
        f"{day(1)} in row 1 of south and {day(0)} in that of north"
    ) in error_of("iTransformer", *arguments, *small("iTransformer"))
    process = run("PatchTST", *arguments, *small(epochs=1))
    assert process.returncode == 0, process.stderr


@pytest.mark.once
def test_series_seen_together_have_the_same_times_in_every_row(tmp_path: Path):
    path = write_places(tmp_path / "table.csv", [day(row + (row >= 40)) for row in range(160)])
    assert f"got {day(41)} in row 41 of south and {day(40)} in that of north" in error_of(
        *("iTransformer", path, "--target", "value", "--id-column", "place"),
        *small("iTransformer", epochs=1),
    )
