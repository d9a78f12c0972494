"""Forecaster: raw series, lists and tables to forecasts in their units."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_attention.models import TFT, Forecaster, PatchTST, iTransformer

from support import forecaster_runs
from support.forecaster_files import PAST, H, save_patchtst, save_tft, table, wave
from support.tolerances import FORECAST_FLOAT32

pytestmark = pytest.mark.once


@pytest.fixture
def patchtst(tmp_path: Path) -> Path:
    return save_patchtst(tmp_path)


@pytest.fixture
def tft(tmp_path: Path) -> Path:
    return save_tft(tmp_path)


def test_every_form_of_one_series_gives_the_networks_forecast(patchtst: Path) -> None:
    forecaster = Forecaster.load(patchtst)
    y = wave(30).float()
    with torch.no_grad():
        expected = PatchTST.from_checkpoint(patchtst)(y[-PAST:].view(1, PAST, 1)).squeeze(-1)
    backwards, read_only = y.flip(0).numpy()[::-1], y.numpy().copy()
    read_only.flags.writeable = False
    forms = (y, y.numpy(), [y], y.view(1, -1), {"y": y})
    lists = (y.tolist(), [y.tolist()], {"y": y.tolist()})
    for series in (*forms, backwards, read_only, *lists):
        forecast = forecaster.predict(series)
        assert forecast.shape == (1, H)
        of_lists = any(series is one for one in lists)
        assert forecast.dtype == (torch.float64 if of_lists else torch.float32)
        torch.testing.assert_close(forecast.float(), expected, rtol=0, atol=FORECAST_FLOAT32)
    assert forecaster.predict(wave(30)).dtype == torch.float64
    assert forecaster.predict(wave(30).numpy()).dtype == torch.float64


def test_several_series_are_forecast_as_each_alone(patchtst: Path) -> None:
    forecaster = Forecaster.load(patchtst)
    series = [wave(30), wave(PAST, 1.0), wave(3, 2.0), wave(1, 3.0)]
    alone = torch.cat([forecaster.predict(one) for one in series])
    torch.testing.assert_close(forecaster.predict(series), alone, rtol=0, atol=FORECAST_FLOAT32)
    same = torch.stack([wave(20), wave(20, 1.0)])
    expected = torch.cat([forecaster.predict(one) for one in same])
    for given in (same, same.numpy(), list(same)):
        torch.testing.assert_close(
            forecaster.predict(given), expected, rtol=0, atol=FORECAST_FLOAT32
        )


def test_table_orders_rows_by_time_and_series_by_id(tft: Path) -> None:
    forecaster = Forecaster.load(tft)
    assert forecaster.futr_exog == ["known"]
    assert forecaster.hist_exog == ["seen"]
    assert forecaster.stat_exog == ["kind"]
    past, future, static = table()
    forecast = forecaster.predict(past, futr_df=future, static_df=static)
    model = TFT.from_checkpoint(tft)
    for number, name in enumerate(("a", "b")):
        rows = [i for i, one in enumerate(past["unique_id"]) if one == name][::-1]
        ahead = [i for i, one in enumerate(future["unique_id"]) if one == name][::-1]
        known = [past["known"][i] for i in rows] + [future["known"][i] for i in ahead]
        windows = {
            "insample_y": torch.tensor([past["y"][i] for i in rows])[-PAST:].view(1, PAST, 1),
            "futr_exog": torch.tensor(known)[-PAST - H :].view(1, PAST + H, 1),
            "hist_exog": torch.tensor([past["seen"][i] for i in rows])[-PAST:].view(1, PAST, 1),
            "stat_exog": torch.tensor([[static["kind"][static["unique_id"].index(name)]]]),
        }
        # neuralforecast's default for TFT, which the file leaves out.
        shift, spread = robust(windows["insample_y"])
        for key in ("insample_y", "futr_exog", "hist_exog"):
            middle, deviation = robust(windows[key])
            windows[key] = (windows[key] - middle) / deviation
        with torch.no_grad():
            expected = (model(windows) * spread + shift).view(H).double()
        torch.testing.assert_close(forecast[number], expected, rtol=0, atol=FORECAST_FLOAT32)


def robust(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and median absolute deviation of the past of a column, as the window scaler's."""
    middle = values[:, :PAST].median(1, keepdim=True).values
    return middle, (values[:, :PAST] - middle).abs().median(1, keepdim=True).values + 1e-6


def test_table_of_one_series_needs_neither_ids_nor_times(tft: Path) -> None:
    forecaster = Forecaster.load(tft)
    past, future, static = table(names=("a",))
    expected = forecaster.predict(past, futr_df=future, static_df=static)
    plain = {k: v[::-1] for k, v in past.items() if k not in ("unique_id", "ds")}
    ahead = {"known": [*future["known"][::-1], 0.0]}  # a row more than needed
    kind = {"kind": static["kind"]}
    assert torch.equal(forecaster.predict(plain, futr_df=ahead, static_df=kind), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, f, s: p.pop("seen"), "with the columns y, known, seen, got"),
        (lambda p, f, s: f.pop("known"), "futr_df with the columns known, got"),
        (lambda p, f, s: s.update(kind=[1.0]), "columns of one length in static_df"),
        (lambda p, f, s: p["y"].__setitem__(0, math.nan), r"\(b\) finite numbers in y, got nan"),
        (lambda p, f, s: p["y"].__setitem__(0, "x"), "expected numbers in column y"),
        (lambda p, f, s: p["ds"].__setitem__(0, 3), "each time once in the table of 'b', got 3"),
        (
            lambda p, f, s: p["ds"].__setitem__(0, "x"),
            "ds of the table, all of one kind, got int, str",
        ),
        (lambda p, f, s: f["ds"].__setitem__(0, 3), "4 rows in futr_df after the last of 'b'"),
        (lambda p, f, s: s["unique_id"].__setitem__(0, "c"), "one row of 'b' in static_df, got 0"),
        (lambda p, f, s: f.pop("unique_id"), "the column unique_id in all of the tables"),
        (lambda p, f, s: p.update(available_mask=[1] * 40), "without available_mask"),
    ],
)
def test_wrong_tables_are_refused_in_words(tft: Path, change: Any, message: str) -> None:
    past, future, static = table()
    change(past, future, static)
    with pytest.raises(ValueError, match=message):
        Forecaster.load(tft).predict(past, futr_df=future, static_df=static)


def test_tables_that_are_missing_are_named(tft: Path) -> None:
    forecaster = Forecaster.load(tft)
    past, future, static = table()
    with pytest.raises(ValueError, match="futr_df with known of the 4 rows .* got none"):
        forecaster.predict(past, static_df=static)
    with pytest.raises(ValueError, match="static_df with kind of each series, got none"):
        forecaster.predict(past, futr_df=future)
    with pytest.raises(
        ValueError, match="futr_df as a dict of columns or a DataFrame .*, got list"
    ):
        forecaster.predict(past, futr_df=[1.0], static_df=static)
    with pytest.raises(ValueError, match=r"futr_exog \[rows \+ h = 24, 1\] \(known\), got none"):
        forecaster.predict(wave(20))


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([], r"y \[rows\] with at least one row, got a tensor \[0\]"),
        ([[]], r"y \[rows\] with at least one row, got a tensor \[0\]"),
        (torch.zeros(2, 3, 4), r"got a tensor \[2, 3, 4\]"),
        (3.0, r"got a tensor \[\]"),
        ("text", "expected numbers in series, got str"),
        ([[1.0], "text"], "expected numbers in series 1, got str"),
        ([1.0, math.inf], "finite numbers in y, got inf in row 1"),
        ([1j, 2j], "real numbers"),
        (None, "expected numbers in series, got NoneType"),
        ({}, "with the columns y, got , without y"),
        ({"y": [[1.0]]}, r"real numbers \[rows\] in column y"),
    ],
)
def test_wrong_series_are_refused_in_words(patchtst: Path, series: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forecaster.load(patchtst).predict(series)


def test_series_that_are_forecast_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "itransformer.safetensors"
    model = iTransformer(h=H, input_size=PAST, n_series=3, hidden_size=8, n_heads=2, d_ff=8)
    model.save(path)
    forecaster = Forecaster.load(path)
    assert forecaster.n_series == 3
    series = torch.stack([wave(20, offset).float() for offset in (0.0, 1.0, 2.0)])
    with torch.no_grad():
        expected = model.eval()(series[:, -PAST:].T.unsqueeze(0))[0].T
    torch.testing.assert_close(forecaster.predict(series), expected, rtol=0, atol=FORECAST_FLOAT32)
    with pytest.raises(ValueError, match="the 3 series that the model forecasts together, got 2"):
        forecaster.predict(series[:2])


def test_saved_forecaster_is_the_same(tft: Path, tmp_path: Path) -> None:
    past, future, static = table()
    forecaster = Forecaster.load(tft)
    forecaster.save(tmp_path / "again.safetensors")
    again = Forecaster.load(tmp_path / "again.safetensors")
    assert repr(again) == repr(forecaster)
    assert torch.equal(
        again.predict(past, futr_df=future, static_df=static),
        forecaster.predict(past, futr_df=future, static_df=static),
    )


@pytest.mark.parametrize("model", ["PatchTST", "iTransformer", "Informer"])
def test_file_of_flash_train_gives_its_forecasts(model: str, tmp_path: Path) -> None:
    training = forecaster_runs.train(
        tmp_path, model, loss="MQLoss", level="80", scaler_type="robust", time_column="day"
    )
    process = forecaster_runs.run(
        "predict", training.model, training.csv, "--forecast-csv", tmp_path / "ahead.csv"
    )
    assert process.returncode == 0, process.stderr
    with (tmp_path / "ahead.csv").open() as file:
        ahead = list(csv.DictReader(file))
    with training.csv.open() as file:
        rows = list(csv.DictReader(file))
    forecaster = Forecaster.load(training.model)
    assert forecaster.targets == ["up", "down"]
    assert forecaster.time_column == "day"
    expected = torch.tensor(
        [
            [
                [float(row[name]) for name in forecaster.output_names]
                for row in ahead
                if row["column"] == target
            ]
            for target in forecaster.targets
        ],
        dtype=torch.float64,
    )
    wide = {name: torch.tensor([float(r[name]) for r in rows]).double() for name in ("up", "down")}
    wide_with_times = wide | {"day": [row["day"] for row in rows]}
    series = [wide["up"], wide["down"]]
    for forecast in (
        forecaster.predict(wide_with_times),
        forecaster.predict(wide),
        forecaster.predict(series, names=["up", "down"]),
    ):
        torch.testing.assert_close(forecast, expected, rtol=0, atol=FORECAST_FLOAT32)
    if model == "PatchTST":
        with pytest.raises(ValueError, match=r"trained on \(down, up\), whose scaler it takes"):
            forecaster.predict(series)
    with pytest.raises(ValueError, match="2 names of series, got"):
        forecaster.predict(series, names=["up"])
