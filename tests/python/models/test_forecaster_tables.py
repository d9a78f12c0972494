"""Forecaster on tables of every kind: ids, times, steps, and what is refused."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flash_attention.models import Forecaster

from support.forecaster_files import H, save_patchtst, save_tft, table, wave

pytestmark = pytest.mark.once

FIRST = datetime(2020, 1, 31, 12)


@pytest.fixture
def patchtst(tmp_path: Path) -> Forecaster:
    return Forecaster.load(save_patchtst(tmp_path))


@pytest.fixture
def tft(tmp_path: Path) -> Forecaster:
    return Forecaster.load(save_tft(tmp_path))


def days(row: int) -> timedelta:
    return timedelta(days=row)


KINDS: dict[str, Callable[[int], Any]] = {
    "integer": lambda row: row,
    "float": lambda row: 0.1 * row,
    "number as text": lambda row: str(90 + row),  # "100" comes before "99" in a dictionary
    "decimal as text": lambda row: str(9.5 + row),
    "date": lambda row: date(2020, 1, 31) + days(row),
    "date and time": lambda row: FIRST + days(row),
    "date with a time zone": lambda row: FIRST.replace(tzinfo=UTC) + days(row),
    "date as text": lambda row: str(date(2020, 1, 31) + days(row)),
    "date with slashes": lambda row: str(date(2020, 1, 31) + days(row)).replace("-", "/"),
    "year and month": lambda row: f"{2020 + row // 12}-{row % 12 + 1:02}",
    "scalar of NumPy": lambda row: np.datetime64("2020-01-31") + row,
}


@pytest.mark.parametrize("time_of", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("as_array", [False, True], ids=["list", "array"])
def test_times_of_every_kind_order_the_rows(
    time_of: Callable[[int], Any], as_array: bool, tft: Forecaster
) -> None:
    past, future, static = table()
    expected = tft.predict(past, futr_df=future, static_df=static)
    for one in (past, future):
        one["ds"] = [time_of(row) for row in one["ds"]]
        if as_array:
            one["ds"] = np.array(one["ds"])
    assert torch.equal(tft.predict(past, futr_df=future, static_df=static), expected)


@pytest.mark.parametrize(
    ("times", "got"),
    [
        (["1", "two", "3"], "got 'two'"),
        (["1", "2020-01-01", "3"], "got both numbers and dates"),
        (["", "2", "3"], "got ''"),
        ([1, None, 3], "got NoneType, int"),
        ([1, "2", 3], "got int, str"),
        ([True, False, True], "got bool"),
        ([1.0, math.nan, 3.0], "got nan"),
        (["1", "nan", "3"], "got nan"),
        (np.array(["2020-01-01", "NaT", "2020-01-03"], "datetime64[D]"), "got NaT"),
        ([date(2020, 1, 1), 2, 3], "got date, int"),
        ([FIRST, FIRST.replace(tzinfo=UTC), FIRST], "without a time zone, got both"),
        ([days(1), days(2), days(3)], "got timedelta"),
        ([2**70, 1, 2], "numbers in column ds of the table, got list: Overflow"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "without masked values, got 1"),
        (5, "got int"),
        ("123", "got str"),
        ([[1], [2], [3]], "got list"),
        (torch.zeros(3, 1), r"got a tensor \[3, 1\]"),
        (torch.zeros(3, device="meta"), r"got a tensor \[3\]"),
        ([1, 2], r"columns of one length in the table, got .*'ds': 2"),
    ],
)
def test_other_times_are_refused(times: Any, got: str, patchtst: Forecaster) -> None:
    with pytest.raises(ValueError, match=f"^Forecaster: expected .*{got}"):
        patchtst.predict({"ds": times, "y": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        (["a", None, "b"], "got rows without an id"),
        ([1.0, math.nan, 2.0], "got rows without an id"),
        (["a", 1, "b"], "that can be ordered: "),
        ([["a"], ["a"], ["b"]], "that can be ordered: "),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "got rows without an id"),
        ("abc", "a value for each row in column unique_id of the table, got str"),
        (5, "a value for each row in column unique_id of the table, got int"),
        (torch.tensor(5), "a value for each row in column unique_id of the table, got Tensor"),
        (["a"] * 4, "columns of one length in the table, got .*'unique_id': 4"),
    ],
)
def test_other_ids_are_refused(ids: Any, got: str, patchtst: Forecaster) -> None:
    with pytest.raises(ValueError, match=f"^Forecaster: expected .*{got}"):
        patchtst.predict({"unique_id": ids, "ds": [1, 2, 3], "y": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize(
    ("y", "got"),
    [
        ([True, False, True], "numbers in column y of the table, got bool"),
        (torch.zeros(3, device="meta"), "real numbers .* in column y"),
        (torch.zeros(3).to_sparse(), "real numbers .* in column y"),
        (np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]), "without masked values, got 1"),
        ([], "at least one row in the table"),
    ],
)
def test_other_values_are_refused(y: Any, got: str, patchtst: Forecaster) -> None:
    with pytest.raises(ValueError, match=f"^Forecaster: expected .*{got}"):
        patchtst.predict({"y": y})


def test_masked_series_is_refused_and_one_without_masked_values_is_not(
    patchtst: Forecaster,
) -> None:
    y = wave(20).numpy()
    assert torch.equal(patchtst.predict(np.ma.array(y)), patchtst.predict(y))
    with pytest.raises(ValueError, match="expected series without masked values, got 2 of them"):
        patchtst.predict(np.ma.masked_greater(y, np.sort(y)[-3]))


@pytest.mark.parametrize("names", [5, "ab", {"a", "b"}, [1, 2], ["a"]])
def test_names_that_are_no_list_of_text_are_refused(names: Any, patchtst: Forecaster) -> None:
    with pytest.raises(ValueError, match="expected a list of 2 names of series, got"):
        patchtst.predict([wave(9), wave(9)], names=names)


def test_objects_that_only_look_like_tables_are_refused(patchtst: Forecaster) -> None:
    class Columnar:
        """Has the columns themselves, as pyarrow's tables, instead of their names."""

        columns = (torch.zeros(3), torch.zeros(3))

    for given in (Columnar(), SimpleNamespace(columns=3), SimpleNamespace(columns=["y"])):
        with pytest.raises(ValueError, match="the table as a dict of columns or a DataFrame of"):
            patchtst.predict(given)


def test_whole_numbers_and_pythons_floats_are_exact_before_scaling(tmp_path: Path) -> None:
    save_patchtst(tmp_path)
    configuration = {"configuration": {"local_scaler_type": "standard"}}
    (tmp_path / "configuration.json").write_text(json.dumps(configuration))
    forecaster = Forecaster.load(tmp_path)
    whole = (10 * wave(20)).round().to(torch.int64) + 2**27  # float32 has every eighth there
    expected = forecaster.predict(whole.double())
    for y in (whole.tolist(), whole.double().tolist()):
        for series in (y, [y], {"y": y}):
            forecast = forecaster.predict(series)
            assert torch.equal(forecast, expected.to(forecast.dtype))


def shifted(future: dict, change: Callable[[int], int]) -> dict:
    return future | {"ds": [change(row) for row in future["ds"]]}


@pytest.mark.parametrize("kind", ["integer", "float", "date", "year and month"])
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda row: row + 1, "21 after 19"),
        (lambda row: row + (row > 21), "23 after 21"),
        (lambda row: 2 * row - 19, "21 after 19"),
    ],
    ids=["late", "gap", "other step"],
)
def test_future_rows_have_to_be_the_next(
    change: Callable[[int], int], got: str, kind: str, tft: Forecaster
) -> None:
    past, future, static = table()
    time_of = KINDS[kind]
    future = shifted(shifted(future, change), time_of)
    got = " after ".join(str(time_of(int(row))) for row in got.split(" after "))
    with pytest.raises(ValueError, match=f"of 'a' in the table to go on in its steps, got {got};"):
        tft.predict(past | {"ds": list(map(time_of, past["ds"]))}, futr_df=future, static_df=static)


def work_days(row: int) -> date:
    return date(2020, 1, 6) + days(7 * (row // 5) + row % 5)


def last_of_month(row: int) -> date:
    return date(2019 + row // 12 + (row % 12 == 11), (row + 1) % 12 + 1, 1) - days(1)


def last_of_quarter(row: int) -> date:
    return last_of_month(3 * row + 2)


def midnights_in_summer_time(row: int) -> datetime:
    start = datetime(2020, 3, 8, 23, tzinfo=UTC)  # 00:00 in Berlin, where summer begins on the 29th
    return start + days(row) - timedelta(hours=int(row > 20))


CALENDARS = [work_days, last_of_month, last_of_quarter, midnights_in_summer_time]


@pytest.mark.parametrize("time_of", CALENDARS)
@pytest.mark.parametrize("rows", [3, 20, 21])
def test_steps_of_a_calendar_are_alike(
    time_of: Callable[[int], date], rows: int, tft: Forecaster
) -> None:
    if time_of is work_days and rows == 3:
        rows = 9  # a table without a weekend does not show that there are any
    past, future, static = table(rows)
    expected = tft.predict(past, futr_df=future, static_df=static)
    past, future = shifted(past, time_of), shifted(future, time_of)
    assert torch.equal(tft.predict(past, futr_df=future, static_df=static), expected)


def test_steps_of_a_single_row_are_those_of_the_future(tft: Forecaster) -> None:
    past, future, static = table(1)
    tft.predict(past, futr_df=future, static_df=static)
    with pytest.raises(ValueError, match="go on in its steps, got 3 after 0"):
        tft.predict(past, futr_df=shifted(future, lambda row: row + 2), static_df=static)


def test_times_of_other_kinds_are_not_compared(tft: Forecaster) -> None:
    past, future, static = table()
    future["ds"] = [FIRST + days(row) for row in future["ds"]]
    with pytest.raises(ValueError, match="numbers in column ds of futr_df, as in the table, got d"):
        tft.predict(past, futr_df=future, static_df=static)


def test_large_table_is_read_quickly(patchtst: Forecaster) -> None:
    """200,000 rows: a loop over them with a comparison each takes two seconds."""
    series, rows = 200, 1000
    ids = [f"s{i}" for i in range(series) for _ in range(rows)]
    times = np.tile(np.datetime64("2020-01-01") + np.arange(rows)[::-1], series)
    given = {"unique_id": ids, "ds": times, "y": torch.randn(series * rows)}
    patchtst.predict({key: values[:rows] for key, values in given.items()})
    start = time.process_time()
    assert patchtst.predict(given).shape == (series, H)
    assert time.process_time() - start < 1.0  # 0.1 s, so that other work on the machine has room
