"""Tables of series: columns of numbers, and their rows by id and in order of time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from flash_attention.models._columns import is_dense, to_list, to_tensor
from flash_attention.models._times import Times, read_times
from torch import Tensor


def is_table(given: Any) -> bool:
    """Whether `given` is a dict of columns or looks like a DataFrame."""
    return isinstance(given, Mapping) or hasattr(given, "columns")


class Table:
    """A dict of columns, or a DataFrame of pandas or polars.

    Attributes:
        what: "the table", "futr_df" or "static_df", for messages.
        columns: the wanted columns, [rows] each, in any real dtype.
        ids: the id of each row; None without `id_column`.
        times: None without `time_column`.
        rows: their number.
    """

    def __init__(
        self, given: Any, what: str, id_column: str, time_column: str, wanted: list[str]
    ) -> None:
        """Read the columns; an empty name stands for no column.

        Raises:
            ValueError: `given` is not a table, or a column is missing, of the wrong kind or length.
        """
        self.what = what
        self._given = given
        self._names = _names(given, what)
        missing = [name for name in wanted if name not in self._names]
        if missing:
            raise ValueError(
                f"Forecaster: expected {what} with the columns {', '.join(wanted)}, got "
                f"{', '.join(map(str, self._names))}, without {', '.join(missing)}"
            )
        self.columns = {name: self._numbers(name) for name in wanted}
        self.ids: list[Any] | None = None
        self.times: Times | None = None
        if id_column and id_column in self._names:
            self.ids = to_list(self._column(id_column), self._describe(id_column))
        if time_column and time_column in self._names:
            self.times = read_times(self._column(time_column), self._describe(time_column))
        lengths = {name: column.size(0) for name, column in self.columns.items()}
        if self.ids is not None:
            lengths[id_column] = len(self.ids)
        if self.times is not None:
            lengths[time_column] = self.times.values.size(0)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Forecaster: expected columns of one length in {what}, got {lengths}")
        self.rows = next(iter(lengths.values()), 0)

    def has(self, name: str) -> bool:
        """Whether there is a column of this name."""
        return name in self._names

    def matrix(self, names: list[str]) -> Tensor:
        """These columns as float64, [rows, columns]."""
        if not names:
            return torch.empty(self.rows, 0, dtype=torch.float64)
        return torch.stack([self.columns[name].to(torch.float64) for name in names], 1)

    @cached_property
    def groups(self) -> dict[Any, Tensor]:
        """The rows of each id, in order of time; ids in order. Without ids, all rows under None."""
        counts = torch.bincount(self._positions, minlength=len(self._keys)).tolist()
        return dict(zip(self._keys, self._order.split(counts), strict=True))

    @cached_property
    def steps(self) -> Tensor:
        """The differences of times that follow one another in a series, sorted, each once."""
        assert self.times is not None
        return self.times.values[self._order].diff()[self._same_series].unique()

    def of_series(self, key: Any) -> str:
        """`key` for messages, if there are ids."""
        return f" of {key!r}" if self.ids is not None else ""

    @cached_property
    def _keys(self) -> list[Any]:
        """The ids in order, each once."""
        if self.ids is None:
            return [None]
        expected = f"ids in {self.what} that can be ordered"
        try:
            found = dict.fromkeys(self.ids)
            if any(key is None or key != key for key in found):  # NaN differs from itself
                raise ValueError(f"Forecaster: expected {expected}, got rows without an id")
            return sorted(found)
        except TypeError as error:
            raise ValueError(f"Forecaster: expected {expected}: {error}") from error

    @cached_property
    def _positions(self) -> Tensor:
        """For each row, where its id is among `_keys`."""
        if self.ids is None:
            return torch.zeros(self.rows, dtype=torch.int64)
        position = {key: index for index, key in enumerate(self._keys)}
        return torch.tensor([position[key] for key in self.ids], dtype=torch.int64)

    @cached_property
    def _order(self) -> Tensor:
        """All rows by id, and then by time."""
        if self.times is None:
            return self._positions.argsort(stable=True)
        order = self.times.values.argsort(stable=True)
        order = order[self._positions[order].argsort(stable=True)]
        times, positions = self.times.values[order], self._positions[order]
        again = (positions[1:] == positions[:-1]) & (times[1:] == times[:-1])
        if again.any():
            row = int(again.nonzero()[0])
            one, other = (self.times.given[int(order[i])] for i in (row, row + 1))
            raise ValueError(
                f"Forecaster: expected each time once in {self.what}"
                f"{self.of_series(self._keys[int(positions[row])])}, got {one} and {other}"
            )
        return order

    @property
    def _same_series(self) -> Tensor:
        """Whether a row in `_order` has the id of the one before, [rows - 1]."""
        return self._positions[self._order].diff() == 0

    def _describe(self, name: str) -> str:
        return f"column {name} of {self.what}"

    def _column(self, name: str) -> Any:
        try:
            return self._given[name]
        except Exception as error:  # whatever an object that is no DataFrame raises
            raise _no_table(self._given, self.what) from error

    def _numbers(self, name: str) -> Tensor:
        column = to_tensor(self._column(name), self._describe(name))
        if not is_dense(column) or column.dim() != 1 or column.is_complex():
            raise ValueError(
                f"Forecaster: expected real numbers [rows] in {self._describe(name)}, got a tensor "
                f"{list(column.shape)} of {column.dtype}"
            )
        return column


def _names(given: Any, what: str) -> list[Any]:
    """The names of the columns."""
    if not is_table(given):
        raise _no_table(given, what)
    if isinstance(given, Mapping):
        return list(given)
    try:
        names = list(given.columns)
    except TypeError as error:
        raise _no_table(given, what) from error
    if not any(isinstance(name, str) for name in names):  # pyarrow has the columns themselves
        raise _no_table(given, what)
    return names


def _no_table(given: Any, what: str) -> ValueError:
    return ValueError(
        f"Forecaster: expected {what} as a dict of columns or a DataFrame of pandas or polars, got "
        + f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
    )
