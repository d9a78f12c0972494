"""accelerate on a NeuralForecast: every method forecasts what the original does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuralforecast.models as nf_models
import numpy as np
import pytest
from flash_attention.models import accelerate, restore
from neuralforecast import NeuralForecast
from neuralforecast.utils import PredictionIntervals

from support.neuralforecast_models import HORIZON, MAKE, QUIET, series

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]


def forecaster(*others: Any) -> NeuralForecast:
    """Two models and `others`, not trained."""
    patchtst = nf_models.PatchTST(hidden_size=16, n_heads=4, patch_len=8, dropout=0.0, **QUIET)
    ours = [MAKE["Informer"](**QUIET), patchtst]
    return NeuralForecast(models=[*ours, *others], freq="D", local_scaler_type="standard")


def accelerated(model: Any) -> bool:
    return type(model.forward).__name__ == "AcceleratedForward"


def numbers(table: Any) -> np.ndarray:
    """The forecasts of a table, without the columns that name series and times."""
    return table.drop(columns=["unique_id", "ds", "cutoff", "y"], errors="ignore").to_numpy()


def predict(it: NeuralForecast) -> Any:
    past, future, static = series()
    it.fit(past, static_df=static)
    return it.predict(futr_df=future)


def predict_insample(it: NeuralForecast) -> Any:
    predict(it)
    return it.predict_insample(step_size=HORIZON)


def cross_validation(it: NeuralForecast) -> Any:
    past, _, static = series()
    return it.cross_validation(past, static_df=static, n_windows=2, step_size=HORIZON)


def cross_validation_with_refit(it: NeuralForecast) -> Any:
    past, _, static = series()
    return it.cross_validation(past, static_df=static, n_windows=2, step_size=HORIZON, refit=True)


def fit_again_from_the_start(it: NeuralForecast) -> Any:
    predict(it)
    past, future, static = series()
    it.fit(past, static_df=static, use_init_models=True)
    return it.predict(futr_df=future)


def prediction_intervals(it: NeuralForecast) -> Any:
    past, future, static = series()
    it.fit(past, static_df=static, prediction_intervals=PredictionIntervals(n_windows=2))
    return it.predict(futr_df=future, level=[80])


METHODS = [
    predict,
    predict_insample,
    cross_validation,
    cross_validation_with_refit,
    fit_again_from_the_start,
    prediction_intervals,
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_results_match_the_original(method: Callable[[NeuralForecast], Any]) -> None:
    expected = method(forecaster())
    ours = forecaster()
    assert accelerate(ours) is ours
    found = method(ours)
    assert list(found.columns) == list(expected.columns)
    # As for single models: float32 after a few training steps.
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-4, atol=1e-4)
    assert all(map(accelerated, ours.models))


def test_trained_restored_saved_and_loaded(tmp_path: Path) -> None:
    _, future, _ = series()
    it = forecaster()
    expected = numbers(predict(it))
    trained = it.models
    accelerate(it)
    assert it.models == trained, "the trained models are kept"
    assert all(map(accelerated, it.models))
    np.testing.assert_allclose(numbers(it.predict(futr_df=future)), expected, rtol=1e-4, atol=1e-4)
    it.save(str(tmp_path / "saved"))
    assert restore(it) is it
    assert not any(map(accelerated, [*it.models, *it.models_init]))
    np.testing.assert_array_equal(numbers(it.predict(futr_df=future)), expected)
    again = NeuralForecast.load(str(tmp_path / "saved"))
    assert not any(map(accelerated, again.models))
    accelerate(again)
    assert all(map(accelerated, again.models))
    np.testing.assert_allclose(
        numbers(again.predict(futr_df=future)), expected, rtol=1e-4, atol=1e-4
    )


def test_unsupported_models_are_named_or_skipped() -> None:
    def others() -> list[Any]:
        return [nf_models.NHITS(**QUIET), nf_models.NLinear(**QUIET)]

    it = forecaster(*others())
    with pytest.raises(TypeError, match="got NHITS, NLinear; skip_unsupported=True accelerates on"):
        accelerate(it)
    assert not any(map(accelerated, it.models)), "nothing has changed"
    expected = numbers(predict(forecaster(*others())))
    accelerate(it, skip_unsupported=True)
    assert list(map(accelerated, it.models)) == [True, True, False, False]
    np.testing.assert_allclose(numbers(predict(it)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match=r"got NHITS, NLinear\n"):
        accelerate(NeuralForecast(others(), freq="D"), skip_unsupported=True)


def test_one_model_for_another_device_leaves_all_unchanged() -> None:
    it = forecaster(nf_models.PatchTST(**(QUIET | dict(accelerator="gpu"))))
    with pytest.raises(ValueError, match="runs on the CPU, got accelerator='gpu'"):
        accelerate(it)
    assert not any(map(accelerated, [*it.models, *it.models_init]))


def test_options_reach_every_model() -> None:
    it = forecaster(MAKE["Autoformer"](**QUIET))
    accelerate(it)
    assert [m.forward.engine.setup.use_flash_attention for m in it.models] == [True, True, False]
    accelerate(it, use_flash_attention=True, flash_block_size=32, gradient_checkpointing=True)
    for model in [*it.models, *it.models_init]:
        setup = model.forward.engine.setup
        assert (setup.use_flash_attention, setup.flash_block_size) == (True, 32)
        assert setup.gradient_checkpointing
