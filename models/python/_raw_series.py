"""Raw series of any kind as the lists of tensors that the C++ Forecaster takes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any, NamedTuple, Protocol

import torch
from flash_attention.models._columns import to_tensor
from flash_attention.models._table import Table
from flash_attention.models._times import follow
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


def of_values(series: Any, names: Sequence[str] | None) -> Lists:
    """Lists of series without exogenous columns."""
    if isinstance(series, (list, tuple)) and not all(map(_is_number, series)):
        y = [to_tensor(one, f"series {index}") for index, one in enumerate(series)]
    else:
        values = to_tensor(series, "series")
        if values.dim() not in (1, 2):
            raise ValueError(
                "Forecaster: expected one series [rows], several [series, rows], a list of them or "
                f"a table, got a tensor {list(values.shape)}"
            )
        y = [values] if values.dim() == 1 else list(values.unbind(0))
    if names is None:
        return Lists(y, [], [], [], [])
    of_text = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not of_text or len(names) != len(y):
        raise ValueError(f"Forecaster: expected a list of {len(y)} names of series, got {names!r}")
    return Lists(y, [], [], [], list(names))


def of_table(columns: Columns, df: Any, futr_df: Any, static_df: Any) -> Lists:
    """Lists of the series in a table, in the order of their ids."""
    wanted = [*columns.targets, *columns.futr_exog, *columns.hist_exog]
    table = Table(df, "the table", columns.id_column, columns.time_column, wanted)
    if table.has("available_mask"):
        raise ValueError(
            "Forecaster: expected a table without available_mask, which is not supported; drop its "
            "rows, or fill them and drop the column"
        )
    if table.rows == 0:
        raise ValueError("Forecaster: expected at least one row in the table, got none")
    for target in columns.targets:
        if table.columns[target].dtype == torch.bool:
            raise ValueError(
                f"Forecaster: expected numbers in column {target} of the table, got bool"
            )
    known, seen = table.matrix(columns.futr_exog), table.matrix(columns.hist_exog)
    future = _future_rows(columns, table, futr_df)
    static = _static_rows(columns, table, static_df)
    lists = Lists([], [], [], [], [])
    for key, rows in table.groups.items():
        for target in columns.targets:
            lists.y.append(table.columns[target][rows])
            lists.names.append(str(key) if table.ids is not None else _name(columns, target))
            if columns.futr_exog:
                lists.futr_exog.append(torch.cat([known[rows], future[key]]))
            if columns.hist_exog:
                lists.hist_exog.append(seen[rows])
            if columns.stat_exog:
                lists.stat_exog.append(static[key])
    return lists


def _name(columns: Columns, target: str) -> str:
    """The name of a series in a table without ids: none where the model knows series by ids."""
    return "" if columns.id_column else target


def _future_rows(columns: Columns, table: Table, futr_df: Any) -> dict[Any, Tensor]:
    """futr_exog of the steps to forecast, [h, columns] of each series."""
    if not columns.futr_exog:
        return {}
    if futr_df is None:
        raise ValueError(
            f"Forecaster: expected futr_df with {', '.join(columns.futr_exog)} of the "
            f"{columns.horizon} rows after the last of each series, got none"
        )
    future = Table(futr_df, "futr_df", columns.id_column, columns.time_column, columns.futr_exog)
    _check_alike(table.ids, future.ids, columns.id_column)
    _check_alike(table.times, future.times, columns.time_column)
    _check_kind(table, future, columns.time_column)
    values, none = future.matrix(columns.futr_exog), torch.empty(0, dtype=torch.int64)
    chosen = {}
    for key, past in table.groups.items():
        rows = future.groups.get(key, none)
        if table.times is not None and future.times is not None:
            last = table.times.values[past[-1]]
            rows = rows[future.times.values[rows] > last]
        if len(rows) < columns.horizon:
            raise ValueError(
                f"Forecaster: expected {columns.horizon} rows in futr_df after the last"
                f"{table.of_series(key)} in the table, got {len(rows)}"
            )
        rows = rows[: columns.horizon]
        _check_steps(columns, table, future, key, rows)
        chosen[key] = values[rows]
    return chosen


def _check_steps(columns: Columns, table: Table, future: Table, key: Any, rows: Tensor) -> None:
    """Check that `rows` of `future` follow the last of the series in steps that the table has."""
    if table.times is None or future.times is None:
        return
    steps = table.steps if len(table.steps) else future.steps
    last = table.groups[key][-1:]
    ahead = torch.cat([table.times.values[last], future.times.values[rows]])
    if not len(steps) or (good := follow(table.times, steps, ahead)).all():
        return
    first = int((~good).nonzero()[0])
    given = [table.times.given[int(last)], *(future.times.given[int(row)] for row in rows)]
    raise ValueError(
        f"Forecaster: expected the {columns.horizon} rows of futr_df after the last"
        f"{table.of_series(key)} in the table to go on in its steps, got "
        f"{given[first + 1]} after {given[first]}; if nothing is missing, put the rows in order "
        f"and leave out {columns.time_column} in both"
    )


def _static_rows(columns: Columns, table: Table, static_df: Any) -> dict[Any, Tensor]:
    """stat_exog of each series, [S]."""
    if not columns.stat_exog:
        return {}
    if static_df is None:
        raise ValueError(
            f"Forecaster: expected static_df with {', '.join(columns.stat_exog)} of each series, "
            "got none"
        )
    static = Table(static_df, "static_df", columns.id_column, "", columns.stat_exog)
    _check_alike(table.ids, static.ids, columns.id_column)
    values, none = static.matrix(columns.stat_exog), torch.empty(0, dtype=torch.int64)
    chosen = {}
    for key in table.groups:
        rows = static.groups.get(key, none)
        if len(rows) != 1:
            raise ValueError(
                f"Forecaster: expected one row{table.of_series(key)} in static_df, got {len(rows)}"
            )
        chosen[key] = values[int(rows[0])]
    return chosen


def _check_alike(one: object, other: object, column: str) -> None:
    if (one is None) != (other is None):
        raise ValueError(
            f"Forecaster: expected the column {column} in all of the tables or in none of them"
        )


def _check_kind(table: Table, future: Table, column: str) -> None:
    if table.times is None or future.times is None or future.rows == 0:
        return
    if table.times.kind != future.times.kind:
        raise ValueError(
            f"Forecaster: expected {table.times.kind} in column {column} of futr_df, as in the "
            f"table, got {future.times.kind}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or (isinstance(value, Tensor) and value.dim() == 0)
