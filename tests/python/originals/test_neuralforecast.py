"""accelerate on neuralforecast's own objects: fit and predict give the same results."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import neuralforecast.models as nf_models
import numpy as np
import pytest
import torch
from flash_attention import models
from flash_attention.models import accelerate, restore
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MAE

from support.neuralforecast_models import HORIZON, MAKE, PAST, QUIET, series

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

CLASSES = sorted(MAKE)


def fit_and_predict(model: Any) -> tuple[np.ndarray, Any]:
    """The forecasts, and neuralforecast's trained copy of `model`."""
    past, future, static = series()
    forecaster = NeuralForecast(models=[model], freq="D")
    forecaster.fit(past, static_df=static)
    table = forecaster.predict(futr_df=future)
    return table.drop(columns=["unique_id", "ds"]).to_numpy(), forecaster.models[0]


@pytest.mark.parametrize("name", CLASSES)
def test_fit_and_predict_match_the_original(name: str) -> None:
    expected, original = fit_and_predict(MAKE[name](**QUIET))
    found, trained = fit_and_predict(accelerate(MAKE[name](**QUIET)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for (key, one), (_, other) in zip(
        original.named_parameters(), trained.named_parameters(), strict=True
    ):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", CLASSES)
def test_trained_object_predicts_the_same_when_accelerated_restored_and_reloaded(
    name: str, tmp_path: Path
) -> None:
    past, future, static = series()
    forecaster = NeuralForecast(models=[MAKE[name](**QUIET)], freq="D")
    forecaster.fit(past, static_df=static)

    def predictions() -> np.ndarray:
        table = forecaster.predict(futr_df=future)
        return table.drop(columns=["unique_id", "ds"]).to_numpy()

    expected = predictions()
    model = forecaster.models[0]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert accelerate(model) is model
    np.testing.assert_allclose(predictions(), expected, rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "model.safetensors")
    restore(model)
    np.testing.assert_array_equal(predictions(), expected)
    forecaster.models = [type(model).load(tmp_path / "model.safetensors")]
    if name != "FEDformer":  # neuralforecast draws its modes anew when it loads the file
        np.testing.assert_allclose(predictions(), expected, rtol=1e-6, atol=1e-6)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", CLASSES)
def test_model_files_are_interchangeable(name: str, tmp_path: Path) -> None:
    original = MAKE[name](**QUIET).eval()
    original.save(tmp_path / "theirs.safetensors")
    ours = models.load(tmp_path / "theirs.safetensors")
    for key, tensor in ours.state_dict().items():
        assert torch.equal(original.state_dict()[key], tensor), key
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.save(tmp_path / "ours.safetensors")
    again = type(original).load(tmp_path / "ours.safetensors").eval()
    assert type(again.loss) is type(original.loss)
    windows = _windows(again)
    torch.manual_seed(1)
    expected = again(windows)
    torch.manual_seed(1)
    torch.testing.assert_close(ours(windows), expected, rtol=1e-4, atol=1e-4)


def _windows(model: Any) -> dict[str, torch.Tensor | None]:
    """A batch in neuralforecast's format."""
    windows = dict(insample_y=torch.randn(3, PAST, getattr(model, "n_series", None) or 1))
    windows["insample_mask"] = torch.ones_like(windows["insample_y"])
    for key, shape in (
        ("futr_exog", (3, PAST + HORIZON, model.futr_exog_size)),
        ("hist_exog", (3, PAST, model.hist_exog_size)),
        ("stat_exog", (3, model.stat_exog_size)),
    ):
        windows[key] = torch.randn(shape) if shape[-1] else None
    return windows


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_reach_the_original_parameters(name: str) -> None:
    original = MAKE[name](**QUIET)
    fast = accelerate(copy.deepcopy(original))
    windows = _windows(original)
    for model in (original, fast):
        torch.manual_seed(1)
        model(windows).square().mean().backward()
    own = dict(fast.named_parameters())
    for key, parameter in original.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(own[key].grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", CLASSES)
def test_copies_and_pickles_stay_accelerated(name: str) -> None:
    model = accelerate(MAKE[name](**QUIET)).eval()
    windows = _windows(model)
    torch.manual_seed(1)
    expected = model(windows).detach()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.forward.model is other
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0)
        torch.manual_seed(1)
        torch.testing.assert_close(other(windows).detach(), expected, rtol=0, atol=0)


def test_categorical_columns_are_embedded() -> None:
    model = nf_models.Informer(
        hidden_size=8,
        futr_exog_list=["known", "day"],
        cat_exog_list=["day"],
        categorical_cardinalities={"day": 7},
        **QUIET,
    ).eval()
    windows = _windows(model)
    torch.manual_seed(1)
    expected = model(windows)
    accelerate(model)
    torch.manual_seed(1)
    torch.testing.assert_close(model(windows), expected, rtol=1e-4, atol=1e-5)


def test_flash_attention_is_the_default_where_it_is_exact() -> None:
    for name in CLASSES:
        setup = accelerate(MAKE[name](**QUIET)).forward.engine.setup
        assert setup.use_flash_attention == (name not in ("Autoformer", "FEDformer"))
    model = accelerate(MAKE["PatchTST"](**QUIET), use_flash_attention=False)
    assert not model.forward.engine.setup.use_flash_attention


def test_tft_interpretation_methods_ask_to_restore_first() -> None:
    model = accelerate(MAKE["TFT"](**QUIET)).requires_grad_(False)
    model(_windows(model))
    with pytest.raises(RuntimeError, match="restore.model. and predict again"):
        model.feature_importances()
    with pytest.raises(RuntimeError, match="restore.model. and predict again"):
        model.attention_weights()
    restore(model)
    model(_windows(model))
    assert model.feature_importances()


def test_restore_ignores_other_objects() -> None:
    model = MAKE["PatchTST"](**QUIET)
    assert restore(model) is model
    assert restore(restore(accelerate(model))) is model
    assert "forward" not in vars(model)


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a model object of neuralforecast.*got torch.nn"):
        accelerate(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="got neuralforecast.models.nhits.NHITS"):
        accelerate(nf_models.NHITS(**QUIET))

    class Own(nf_models.PatchTST):
        def forward(self, windows_batch):
            return super().forward(windows_batch) + 1

    with pytest.raises(TypeError, match="expected Own to have the forward of PatchTST"):
        accelerate(Own(**QUIET))


def test_model_for_another_device_is_refused() -> None:
    model = nf_models.PatchTST(**(QUIET | dict(accelerator="gpu")))
    with pytest.raises(ValueError, match="runs on the CPU, got accelerator='gpu'"):
        accelerate(model)


def test_unsupported_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "4.0.0")
    with pytest.raises(ValueError, match="expected neuralforecast 3.3.*got 4.0.0"):
        accelerate(MAKE["PatchTST"](**QUIET))


def test_subclass_and_excluded_series() -> None:
    class Named(nf_models.Informer):
        pass

    model = Named(
        hidden_size=8, futr_exog_list=["known"], exclude_insample_y=True, loss=MAE(), **QUIET
    ).eval()
    windows = _windows(model)
    torch.manual_seed(1)
    expected = model(windows)
    torch.manual_seed(1)
    torch.testing.assert_close(accelerate(model)(windows), expected, rtol=1e-4, atol=1e-5)
