"""The times of a table: how they are ordered, and the steps between them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from flash_attention.models._columns import is_dense, to_array, to_list, to_tensor
from torch import Tensor

EXPECTED = "times as numbers, dates or ISO 8601 text"

HOUR = 3_600_000_000
DAY = 24 * HOUR
"""In microseconds, in which dates are counted from 1970."""

MONTH_ALONE = re.compile(r"\d{4}-\d{2}")


class Times(NamedTuple):
    """The times of all rows, of one kind."""

    kind: str
    """"numbers", "dates" or "dates with a time zone"; only times of one kind can be compared."""

    values: Tensor
    """[rows]: int64 or float64; dates as microseconds, in UTC where they have a time zone."""

    given: Any
    """[rows]: what the caller wrote, for messages."""


def read_times(column: Any, what: str) -> Times:
    """Read a column of numbers, of dates, or of text with either.

    Text is read like a CSV file of flash_train: as whole numbers, else as numbers, else as dates.

    Raises:
        ValueError: a time is missing or is none of these, or they are of several kinds.
    """
    array = to_array(column, what)
    numpy_kind = getattr(getattr(array, "dtype", None), "kind", "O")
    if numpy_kind == "M":
        if (array != array).any():  # only NaT differs from itself
            raise ValueError(f"Forecaster: expected {EXPECTED} in {what}, got NaT")
        microseconds = array.astype("datetime64[us]").astype("int64")
        return Times("dates", _numbers(to_tensor(microseconds, what), what), array)
    if isinstance(array, Tensor) or numpy_kind in ("i", "f"):
        return Times("numbers", _numbers(to_tensor(array, what), what), array)
    given = to_list(array, what)
    values: list[Any] = [_from_numpy(value) for value in given]
    kinds = set(map(type, values))
    if kinds == {str}:
        values = _parse(values, what)
        kinds = set(map(type, values))
    if bool not in kinds and all(issubclass(kind, Real) for kind in kinds):
        whole = all(issubclass(kind, Integral) for kind in kinds)
        numbers = [int(value) if whole else float(value) for value in values]
        return Times("numbers", _numbers(to_tensor(numbers, what), what), given)
    if all(issubclass(kind, date) for kind in kinds):
        kind_of_dates, microseconds = _dates(values, what)
        return Times(kind_of_dates, torch.tensor(microseconds), given)
    raise ValueError(
        f"Forecaster: expected {EXPECTED} in {what}, all of one kind, got "
        f"{', '.join(sorted(kind.__name__ for kind in kinds))}"
    )


def _from_numpy(value: Any) -> Any:
    """A datetime for a scalar of NumPy's datetime64, otherwise `value`."""
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":
        return value.astype("datetime64[us]").item()
    return value


def _numbers(values: Tensor, what: str) -> Tensor:
    real = not values.is_complex() and values.dtype != torch.bool
    if values.dim() != 1 or not real or not is_dense(values):
        raise ValueError(
            f"Forecaster: expected {EXPECTED} [rows] in {what}, got a tensor {list(values.shape)} "
            f"of {values.dtype}"
        )
    if not values.is_floating_point():
        return values.to(torch.int64)
    values = values.to(torch.float64)
    if not values.isfinite().all():
        bad = values[~values.isfinite()][0]
        raise ValueError(f"Forecaster: expected {EXPECTED} in {what}, got {bad}")
    return values


def _parse(values: list[str], what: str) -> list[Any]:
    parsers: tuple[Callable[[str], Any], ...] = (int, float, _parse_date)
    for parse in parsers:
        if all(_can(parse, value) for value in values):
            return [parse(value) for value in values]
    odd = [value for value in values if not any(_can(parse, value) for parse in parsers)]
    got = repr(odd[0][:100]) if odd else "both numbers and dates"
    raise ValueError(f"Forecaster: expected {EXPECTED} in {what}, all of one kind, got {got}")


def _can(parse: Callable[[str], Any], text: str) -> bool:
    try:
        parse(text)
        return True
    except ValueError:
        return False


def _parse_date(text: str) -> datetime:
    text = text.strip()
    whole = f"{text}-01" if MONTH_ALONE.fullmatch(text) else text.replace("/", "-")
    return datetime.fromisoformat(whole)


def _dates(values: list[Any], what: str) -> tuple[str, list[int]]:
    """The kind of these dates, and their microseconds since 1970."""
    epoch = datetime(1970, 1, 1)
    microsecond = timedelta(microseconds=1)
    microseconds, zones = [], set()
    for value in values:
        if value != value:  # only NaT differs from itself
            raise ValueError(f"Forecaster: expected {EXPECTED} in {what}, got {value}")
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        offset = value.utcoffset()
        zones.add(offset is not None)
        start = epoch if offset is None else epoch.replace(tzinfo=UTC)
        microseconds.append(int((value - start) // microsecond))
    if len(zones) > 1:
        raise ValueError(
            f"Forecaster: expected dates in {what} all with or all without a time zone, got both"
        )
    return "dates with a time zone" if zones == {True} else "dates", microseconds


def follow(times: Times, steps: Tensor, ahead: Tensor) -> Tensor:
    """Whether each of the times `ahead[1:]` is one of `steps`, sorted, after the one before it.

    Months differ by up to three days, and days by an hour where summer time begins or ends.
    """
    gaps = ahead.diff()
    if times.kind == "numbers":
        # Sums of steps like 0.1 are rounded.
        tolerance = gaps.abs() * (1e-3 if ahead.is_floating_point() else 0)
    else:
        tolerance = torch.zeros_like(gaps)
        tolerance[gaps >= DAY - HOUR] = HOUR
        tolerance[gaps >= 28 * DAY - HOUR] = 3 * DAY + HOUR
    steps = steps.to(gaps.dtype)
    above = torch.searchsorted(steps, gaps).clamp(max=len(steps) - 1)
    below = (above - 1).clamp(min=0)
    off = torch.minimum((steps[above] - gaps).abs(), (steps[below] - gaps).abs())
    return off <= tolerance
