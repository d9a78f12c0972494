"""Forecasts of raw series by a model from a file."""

from __future__ import annotations

import os
from typing import Any

import torch
from flash_attention.models import _old_checkpoint, _raw_series
from flash_attention.models._table import is_table
from torch import Tensor


class Forecaster:
    """A model from a file, with all that turns raw series into forecasts in their units.

    >>> from flash_attention.models import Forecaster, PatchTST
    >>> PatchTST(h=3, input_size=12, patch_len=4, stride=2).save("model.safetensors")
    >>> forecaster = Forecaster.load("model.safetensors")
    >>> forecaster.horizon, forecaster.output_names
    (3, ['forecast'])
    >>> forecaster.predict([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0]]).shape
    torch.Size([2, 3])

    The file's network, loss and window scaler are applied in C++, where
    `<flash_attention/models/forecaster.h>` offers the same class. Whole series are scaled, before
    windows are taken, as the file says: by flash_train's means and deviations of the training rows,
    or by `local_scaler_type` of a folder of `NeuralForecast.save`, fitted to the series that are
    given; otherwise not at all. The window is the last `input_size` rows. Shorter series are padded
    as in neuralforecast: by zeros on the left, which the window scaler leaves out.

    Threads may share a forecaster. It can be copied, and pickled for other processes. Torch's
    random state, default dtype and autocast neither change nor matter.

    Attributes:
        model_class: neuralforecast's name of the network's class: "PatchTST", ...
        horizon: steps to forecast, neuralforecast's `h`.
        input_size: rows that the model looks back.
        n_series: series that the model forecasts together, all of which `predict` must be given; 1
            except for iTransformer.
        output_names: "forecast", or with intervals "forecast-median", "forecast-lo-90", ...; for
            a distribution the first is the mean, "forecast".
        series_names: the series whose scalers the file holds; empty if any series is accepted.
        id_column: the column of tables that tells which series a row belongs to; empty if each
            target column is a series.
        time_column: the column by which rows are ordered; empty if they are in order of time.
        targets: the columns to forecast.
        futr_exog, hist_exog, stat_exog: the exogenous columns that `predict` requires: known for
            past and future, known for the past, and one value per series.
    """

    def __init__(self, native: Any) -> None:
        """`load` makes one; `native` is the C++ object."""
        self._native = native
        (
            self.model_class,
            self.horizon,
            self.input_size,
            self.n_series,
            self.output_names,
            self.series_names,
        ) = native.properties()
        (
            self.id_column,
            self.time_column,
            self.targets,
            self.futr_exog,
            self.hist_exog,
            self.stat_exog,
        ) = native.columns()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | None = None) -> Forecaster:
        """Load a file of flash_train, neuralforecast, or `ForecastModel.save`; or `save` below.

        Of neuralforecast these are files of `model.save`, folders of `NeuralForecast.save`, and
        `.ckpt` files of releases before 3.3, whose pickles are read without running code of theirs.
        Attention is computed as the model was trained, by the operator where results are the same.

        Args:
            path: the file or folder. A file in a folder of `NeuralForecast.save` takes its
                configuration.json, too.
            model: which model of a folder that holds several: "PatchTST_0".

        Raises:
            ValueError: the file is broken, holds none of the six models, or needs an option, a loss
                or a scaler that is not supported.
            TypeError: `model` is no name.
        """
        if model is not None and not isinstance(model, str):
            raise TypeError(f"Forecaster: expected `model` as a name or None, got {model!r}")
        path = os.fspath(path)
        if _old_checkpoint.is_torch_file(path):
            if model is not None:
                raise ValueError(
                    f"Forecaster: expected `model` only for a folder, got {model!r} for {path}"
                )
            return cls._from_contents(*_old_checkpoint.read(path))
        return cls(torch.classes.flash_models.Forecaster(path, model or ""))

    @classmethod
    def _from_contents(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Forecaster:
        return cls(torch.ops.flash_models.make_forecaster(tensors, metadata))

    def predict(
        self,
        series: Any,
        *,
        futr_df: Any = None,
        static_df: Any = None,
        names: list[str] | None = None,
    ) -> Tensor:
        """Forecast the steps after the last row of each series.

        Args:
            series: finite numbers in order of time, as

                - one series: a tensor, array or list [rows];
                - series of the same length: a tensor or array [series, rows];
                - series of any lengths: a list of tensors, arrays or lists [rows];
                - a table: a dict of columns or a DataFrame with `targets`, and where the model has
                  them `id_column`, `time_column`, `hist_exog` and `futr_exog`. Without the id
                  column, rows belong to one series; without the time column, they are in order of
                  time. Times are numbers, dates, or text as in a CSV file: whole numbers or ISO
                  8601. Other columns are ignored. The table is like neuralforecast's: by default
                  `unique_id`, `ds` and `y`.

            futr_df: a table with `futr_exog` of the `horizon` rows after the last of each series,
                and ids and times as in `series`. Times have to go on in steps that the table has,
                where a month is 28 to 31 days. Earlier and further rows are ignored.
            static_df: a table with `stat_exog` and the ids, one row per series.
            names: of series that are not in a table, where `series_names` has several.

        Returns:
            [series, horizon], or [series, horizon, outputs] if there are several `output_names`:
            float64 if a series is, as are Python's floats; otherwise float32. Series of a table
            are in the order of their ids, or of `targets` if there is no id column.

        Raises:
            ValueError: missing, masked or non-finite values, ids or times, a missing column, a row
                that is missing or has the time of another, times of several kinds, bools as
                values of a series, an unknown name, or for iTransformer another number of series
                than `n_series`.
        """
        if isinstance(series, Tensor) and series.dim() == 1 and names is None:
            if futr_df is None and static_df is None:
                return self._native.predict([series], [], [], [], [])
        if is_table(series):
            if names is not None:
                raise ValueError("Forecaster: expected names only of series that are not a table")
            return self._native.predict(*_raw_series.of_table(self, series, futr_df, static_df))
        if futr_df is not None or static_df is not None:
            raise ValueError(
                "Forecaster: expected futr_df and static_df only beside a table, got "
                f"{type(series).__name__}; a dict of columns is a table"
            )
        return self._native.predict(*_raw_series.of_values(series, names))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, which `load`, C++'s Forecaster and neuralforecast read.

        Raises:
            ValueError: the file cannot be written.
        """
        self._native.save(os.fspath(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what a file would hold."""
        return self._from_contents, self._native.contents()

    def __repr__(self) -> str:
        """Return the class, sizes and outputs."""
        return (
            f"Forecaster({self.model_class}, horizon={self.horizon}, input_size={self.input_size}, "
            f"output_names={self.output_names})"
        )
