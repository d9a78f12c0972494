"""Raw series of any kind as the lists of tensors that the C++ Forecaster takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Columns(Protocol):
    """The columns of a Forecaster, and its horizon."""

    horizon: int
    id_column: str
    time_column: str
    targets: list[str]
    futr_exog: list[str]
    hist_exog: list[str]
    stat_exog: list[str]


class Lists(NamedTuple):
    """One element per series, or none."""

    y: list[Tensor]
    futr_exog: list[Tensor]
    hist_exog: list[Tensor]
    stat_exog: list[Tensor]
    names: list[str]


def is_table(given: Any) -> bool:
    """Whether `given` is a dict of columns or a DataFrame."""
    return isinstance(given, Mapping) or hasattr(given, "columns")


def of_values(series: Any, names: Sequence[str] | None) -> Lists:
    """Lists of series without exogenous columns."""
    given = list(names) if names is not None else []
    if isinstance(series, (list, tuple)) and not all(map(_is_number, series)):
        y = [_tensor(one, f"series {index}") for index, one in enumerate(series)]
    else:
        values = _tensor(series, "series")
        if values.dim() not in (1, 2):
            raise ValueError(
                "Forecaster: expected one series [rows], several [series, rows], a list of them or "
                f"a table, got a tensor {list(values.shape)}"
            )
        y = [values] if values.dim() == 1 else list(values.unbind(0))
    if names is not None and (
        len(given) != len(y) or not all(isinstance(name, str) for name in given)
    ):
        raise ValueError(f"Forecaster: expected {len(y)} names of series, got {given!r}")
    return Lists(y, [], [], [], given)


def of_table(columns: Columns, df: Any, futr_df: Any, static_df: Any) -> Lists:
    """Lists of the series in a table, in the order of their ids."""
    table = Table(df, "the table", columns.id_column, columns.time_column)
    if table.has("available_mask"):
        raise ValueError(
            "Forecaster: expected a table without available_mask, which is not supported; drop its "
            "rows, or fill them and drop the column"
        )
    groups = table.groups()
    past = table.numbers([*columns.targets, *columns.futr_exog, *columns.hist_exog])
    future = _future_rows(columns, table, groups, futr_df)
    static = _static_rows(columns, groups, static_df)
    lists = Lists([], [], [], [], [])
    first_hist = len(columns.targets) + len(columns.futr_exog)
    for key, rows in groups.items():
        values = past[:, rows]
        for position, target in enumerate(columns.targets):
            lists.y.append(values[position])
            of_id = "" if key is None else str(key)
            lists.names.append(of_id if columns.id_column else target)
            if columns.futr_exog:
                known = values[len(columns.targets) : first_hist]
                lists.futr_exog.append(torch.cat([known, future[key]], 1).T)
            if columns.hist_exog:
                lists.hist_exog.append(values[first_hist:].T)
            if columns.stat_exog:
                lists.stat_exog.append(static[key])
    return lists


class Table:
    """A dict of columns, or a DataFrame of pandas or polars."""

    def __init__(self, given: Any, what: str, id_column: str, time_column: str) -> None:
        if not is_table(given):
            raise ValueError(
                f"Forecaster: expected {what} as a dict of columns or a DataFrame, got "
                f"{type(given).__name__}"
            )
        self.given, self.what = given, what
        names = given.keys() if isinstance(given, Mapping) else given.columns
        self.names = list(names)
        self.ids = self._list(id_column) if id_column in self.names else None
        self.times = self._list(time_column) if time_column in self.names else None

    def has(self, name: str) -> bool:
        return name in self.names

    def numbers(self, names: list[str]) -> Tensor:
        """These columns, [columns, rows]: float64 if one is, otherwise float32."""
        missing = [name for name in names if not self.has(name)]
        if missing:
            raise ValueError(
                f"Forecaster: expected {self.what} with the columns {', '.join(names)}, got "
                f"{', '.join(map(str, self.names))}, without {', '.join(missing)}"
            )
        columns = [self._column(name) for name in names]
        lengths = {name: column.size(0) for name, column in zip(names, columns, strict=True)}
        if self.ids is not None:
            lengths["ids"] = len(self.ids)
        if self.times is not None:
            lengths["times"] = len(self.times)
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"Forecaster: expected columns of one length in {self.what}, got {lengths}"
            )
        exact = any(column.dtype == torch.float64 for column in columns)
        return torch.stack([c.to(torch.float64 if exact else torch.float32) for c in columns])

    def groups(self) -> dict[Any, list[int]]:
        """The rows of each id, in order of time; ids in order. Without ids, all rows under None."""
        rows: dict[Any, list[int]] = {}
        if self.ids is None:
            rows[None] = list(range(self.rows()))
        else:
            for row, key in enumerate(self.ids):
                rows.setdefault(key, []).append(row)
        try:
            ordered = {key: rows[key] for key in sorted(rows)} if self.ids is not None else rows
            for key, own in ordered.items():
                self._order(key, own)
        except TypeError as error:
            raise ValueError(
                f"Forecaster: expected ids and times in {self.what} that can be ordered: {error}"
            ) from error
        return ordered

    def rows(self) -> int:
        if self.times is not None:
            return len(self.times)
        return len(self._list(self.names[0])) if self.names else 0

    def _order(self, key: Any, rows: list[int]) -> None:
        """Sort `rows` by time."""
        times = self.times
        if times is None:
            return
        rows.sort(key=times.__getitem__)
        for one, other in zip(rows, rows[1:], strict=False):
            if not times[one] < times[other]:  # NaT is less than nothing
                of_series = f" of {key!r}" if self.ids is not None else ""
                raise ValueError(
                    f"Forecaster: expected each time once in {self.what}{of_series}, got "
                    f"{times[one]} and {times[other]}"
                )

    def _column(self, name: str) -> Tensor:
        what = f"column {name} of {self.what}"
        column = _tensor(self.given[name], what)
        if column.dim() != 1 or column.is_complex():
            raise ValueError(
                f"Forecaster: expected real numbers [rows] in {what}, got a tensor "
                f"{list(column.shape)} of {column.dtype}"
            )
        return column

    def _list(self, name: str) -> list[Any]:
        column = self.given[name]
        for method in ("tolist", "to_list"):
            if hasattr(column, method):
                return list(getattr(column, method)())
        return list(column)


def _future_rows(
    columns: Columns, table: Table, groups: dict[Any, list[int]], futr_df: Any
) -> dict[Any, Tensor]:
    """futr_exog of the steps to forecast, [columns, h] of each series."""
    if not columns.futr_exog:
        return {}
    if futr_df is None:
        raise ValueError(
            f"Forecaster: expected futr_df with {', '.join(columns.futr_exog)} of the "
            f"{columns.horizon} rows after the last of each series, got none"
        )
    future = Table(futr_df, "futr_df", columns.id_column, columns.time_column)
    _check_alike(table.ids, future.ids, columns.id_column)
    _check_alike(table.times, future.times, columns.time_column)
    values, found = future.numbers(columns.futr_exog), future.groups()
    chosen = {}
    for key, past in groups.items():
        rows = found.get(key, [])
        if table.times is not None and future.times is not None:
            last = table.times[past[-1]]
            rows = [row for row in rows if future.times[row] > last]
        if len(rows) < columns.horizon:
            of_series = f" of {key!r}" if table.ids is not None else ""
            raise ValueError(
                f"Forecaster: expected {columns.horizon} rows in futr_df after the last{of_series} "
                f"in the table, got {len(rows)}"
            )
        chosen[key] = values[:, rows[: columns.horizon]]
    return chosen


def _static_rows(
    columns: Columns, groups: dict[Any, list[int]], static_df: Any
) -> dict[Any, Tensor]:
    """stat_exog of each series, [S]."""
    if not columns.stat_exog:
        return {}
    if static_df is None:
        raise ValueError(
            f"Forecaster: expected static_df with {', '.join(columns.stat_exog)} of each series, "
            "got none"
        )
    table = Table(static_df, "static_df", columns.id_column, "")
    _check_alike(None if None in groups else [], table.ids, columns.id_column)
    values, found = table.numbers(columns.stat_exog), table.groups()
    chosen = {}
    for key in groups:
        rows = found.get(key, [])
        if len(rows) != 1:
            of_series = f" of {key!r}" if table.ids is not None else ""
            raise ValueError(
                f"Forecaster: expected one row{of_series} in static_df, got {len(rows)}"
            )
        chosen[key] = values[:, rows[0]]
    return chosen


def _check_alike(one: list[Any] | None, other: list[Any] | None, column: str) -> None:
    if (one is None) != (other is None):
        raise ValueError(
            f"Forecaster: expected the column {column} in all of the tables or in none of them"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or (isinstance(value, Tensor) and value.dim() == 0)


def _tensor(values: Any, what: str) -> Tensor:
    """A tensor of numbers; float32 for those in lists."""
    if isinstance(values, Tensor):
        return values
    try:
        # A list of pandas or polars is not indexed by position.
        values = values.to_numpy() if hasattr(values, "to_numpy") else values
        if hasattr(values, "flags") and hasattr(values, "strides"):
            if not values.flags.writeable or any(stride < 0 for stride in values.strides):
                values = values.copy()  # torch warns of the one, and refuses the other
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Forecaster: expected numbers in {what}, got {type(values).__name__}: {error}"
        ) from error
