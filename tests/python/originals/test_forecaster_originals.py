"""Forecaster on neuralforecast's files: the forecasts of neuralforecast's own predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neuralforecast.models as nf_models
import numpy as np
import pytest
import torch
from flash_attention.models import Forecaster
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import DistributionLoss, MQLoss

from support.neuralforecast_models import HORIZON, MAKE, PAST, QUIET, series

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

# float32 through a whole model, a window scaler and its inverse, on values of order 10, with
# summation orders that differ. A series in the wrong units or a wrong window is off by 0.1.
CLOSE = dict(rtol=1e-4, atol=1e-4)

# Quantiles and means of distributions are exact here, and those of 1,000 random samples there: the
# mean of a Normal is off by its deviation / 30.
SAMPLED = 0.2


def fitted(model: Any, **options: Any) -> tuple[NeuralForecast, Any]:
    """neuralforecast's forecaster, and its tables."""
    tables = series()
    forecaster = NeuralForecast(models=[model], freq="D", **options)
    forecaster.fit(tables[0], static_df=tables[2])
    return forecaster, tables


def forecast_by(forecaster: NeuralForecast, past: Any, future: Any, static: Any) -> np.ndarray:
    """[series, h, outputs] by neuralforecast."""
    table = forecaster.predict(past, static_df=static, futr_df=future)
    values = table.drop(columns=["unique_id", "ds"]).to_numpy()
    return values.reshape(-1, HORIZON, values.shape[1])


def forecast_of(forecaster: Forecaster, past: Any, future: Any, static: Any) -> np.ndarray:
    """[series, h, outputs] by the Forecaster."""
    forecast = forecaster.predict(past, futr_df=future, static_df=static).numpy()
    return forecast if forecast.ndim == 3 else forecast[..., None]


@pytest.mark.parametrize("name", sorted(MAKE))
def test_folder_gives_neuralforecasts_forecasts(name: str, tmp_path: Path) -> None:
    theirs, tables = fitted(MAKE[name](**QUIET), local_scaler_type="standard")
    expected = forecast_by(theirs, *tables)  # first, or neuralforecast cannot save a distribution
    theirs.save(str(tmp_path / "folder"))
    model = theirs.models[0]
    ours = Forecaster.load(tmp_path / "folder")
    assert ours.output_names == ["forecast" + suffix for suffix in model.loss.output_names]
    found = forecast_of(ours, *tables)
    (file,) = (tmp_path / "folder").glob(f"*{name}*.safetensors")
    assert np.array_equal(forecast_of(Forecaster.load(file), *tables), found)
    if name == "PatchTST":  # mean and quantiles, then the distribution's parameters
        parameters = len(model.loss.param_names)
        np.testing.assert_allclose(found[..., -parameters:], expected[..., -parameters:], **CLOSE)
        assert np.abs(found - expected).max() < SAMPLED
    else:
        np.testing.assert_allclose(found, expected, **CLOSE)


def small_patchtst(**options: Any) -> Any:
    return nf_models.PatchTST(
        hidden_size=16, n_heads=4, patch_len=8, stride=4, dropout=0.0, **QUIET, **options
    )


@pytest.mark.parametrize("local", [None, "robust", "robust-iqr", "minmax"])
@pytest.mark.parametrize("window", ["minmax1", "invariant"])
def test_scalers_and_series_shorter_than_the_window(
    local: str | None, window: str, tmp_path: Path
) -> None:
    model = small_patchtst(loss=MQLoss(quantiles=[0.1, 0.5, 0.9]), scaler_type=window)
    theirs, (past, _, _) = fitted(model, local_scaler_type=local)
    theirs.save(str(tmp_path / "folder"))
    ours = Forecaster.load(tmp_path / "folder")
    rows = past.groupby("unique_id").cumcount()
    short = past[(past.unique_id == "a") | (rows >= 60 - PAST // 3)][["unique_id", "ds", "y"]]
    expected = forecast_by(theirs, short, None, None)
    np.testing.assert_allclose(forecast_of(ours, short, None, None), expected, **CLOSE)
    lists = [group.y.to_numpy() for _, group in short.groupby("unique_id")]
    np.testing.assert_allclose(ours.predict(lists).numpy(), expected, **CLOSE)


def test_quantiles_of_several_series_are_in_neuralforecasts_order(tmp_path: Path) -> None:
    model = MAKE["iTransformer"](loss=MQLoss(level=[80]), **QUIET)
    theirs, tables = fitted(model)
    theirs.models[0].save(str(tmp_path / "model.safetensors"))
    ours = Forecaster.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(forecast_of(ours, *tables), forecast_by(theirs, *tables), **CLOSE)


@pytest.mark.parametrize(
    "loss", [MQLoss(level=[80, 90]), MQLoss(quantiles=[0.2, 0.7]), DistributionLoss("StudentT")]
)
def test_old_checkpoint_gives_the_forecasts_of_the_new_file(loss: Any, tmp_path: Path) -> None:
    model = small_patchtst(loss=loss, scaler_type="robust", alias="mine", batch_size=np.int64(8))
    del model.loss._nf_init_kwargs  # which releases before 3.3 did not record
    # As those releases save; the optimizer and the loss are classes of other packages.
    contents = {"hyper_parameters": model.hparams, "state_dict": model.state_dict()}
    torch.save(contents, tmp_path / "model.ckpt")
    old = Forecaster.load(tmp_path / "model.ckpt")
    model.save(str(tmp_path / "model.safetensors"))
    new = Forecaster.load(tmp_path / "model.safetensors")
    y = torch.sin(torch.arange(40.0))
    assert old.output_names == new.output_names
    assert torch.equal(old.predict(y), new.predict(y))


@pytest.fixture
def plain(tmp_path: Path) -> Forecaster:
    """A model without exogenous columns."""
    small_patchtst().save(str(tmp_path / "model.safetensors"))
    return Forecaster.load(tmp_path / "model.safetensors")


def test_columns_of_pandas_in_every_form_give_the_same_forecasts(plain: Forecaster) -> None:
    past = series()[0][["unique_id", "ds", "y"]]
    expected = plain.predict(past)
    shuffled = past.sample(frac=1, random_state=0)
    text, number = shuffled.ds.astype(str), (shuffled.ds - past.ds.min()).dt.days
    for ds in (shuffled.ds, text, number, number.astype("Int64"), number.astype(str)):
        assert torch.equal(plain.predict(shuffled.assign(ds=ds)), expected)
    zoned = shuffled.ds.dt.tz_localize("Europe/Berlin")
    for one in (
        shuffled.assign(ds=zoned),
        shuffled.assign(unique_id=shuffled.unique_id.astype("category")),
        shuffled.convert_dtypes(dtype_backend="pyarrow"),
        shuffled.to_dict("list"),
    ):
        assert torch.equal(plain.predict(one), expected)


def test_missing_values_of_pandas_are_refused(plain: Forecaster) -> None:
    past = series()[0][["unique_id", "ds", "y"]]
    days = (past.ds - past.ds.min()).dt.days
    for column, values, got in (
        ("ds", past.ds, "got NaT"),
        ("ds", past.ds.dt.tz_localize("UTC"), "got NaT"),
        ("ds", days.astype("Int64"), "got nan"),
        ("ds", past.ds.dt.to_period("D"), "got NaTType, Period"),
        ("unique_id", past.unique_id, "without an id"),
        ("unique_id", past.unique_id.astype("string"), "without an id|ambiguous"),
        ("y", past.y, "finite numbers in y, got nan"),
    ):
        missing = past.assign(**{column: values.where(past.index != past.index[3])})
        with pytest.raises(ValueError, match=f"^Forecaster: expected .*({got})"):
            plain.predict(missing)


def test_tables_of_pyarrow_are_refused(plain: Forecaster) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    given = pyarrow.Table.from_pandas(series()[0])
    with pytest.raises(ValueError, match=r"DataFrame of pandas or polars, got pyarrow\.lib\.Table"):
        plain.predict(given)
