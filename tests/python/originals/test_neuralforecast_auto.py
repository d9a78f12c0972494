"""accelerate on Auto* models: every trial and the final refit compute in C++."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import pytorch_lightning as pl
import ray
import torch
from flash_attention.models import accelerate, restore
from neuralforecast import NeuralForecast, auto
from neuralforecast.auto import RayOptions
from ray import tune

from support.neuralforecast_models import HORIZON, PAST, QUIET, series

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

RATES = [1e-3, 1e-2, 3e-2]

FIXED = {key: QUIET[key] for key in QUIET if key not in ("h", "learning_rate")} | dict(
    hidden_size=16, dropout=0.0
)
OPTIONS: dict[str, dict[str, Any]] = {
    "AutoTFT": {},
    "AutoInformer": {},
    "AutoAutoformer": {},
    "AutoFEDformer": dict(modes=4),
    "AutoPatchTST": dict(n_heads=4, patch_len=8, stride=4),
    "AutoiTransformer": dict(n_series=2, d_ff=32),
}
CLASSES = sorted(OPTIONS)


def recorder(path: Path) -> pl.Callback:
    """Writes the process and the class of `forward` of each fit to a file."""

    class Recorder(pl.Callback):
        """Local, so that Ray sends it to its processes and they do not import this file."""

        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            with path.open("a") as file:
                file.write(f"{os.getpid()} {type(pl_module.forward).__name__}\n")

    return Recorder()


def recorded(path: Path) -> list[tuple[int, str]]:
    """Process and class of each fit."""
    lines = path.read_text().splitlines()
    return [(int(process), name) for process, name in map(str.split, lines)]


def make(name: str, callbacks: list[pl.Callback], **more: Any) -> Any:
    """An Auto* model that tries each of RATES with Optuna."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options = FIXED | OPTIONS[name] | dict(callbacks=callbacks)

    def config(trial: Any) -> dict[str, Any]:
        return options | dict(learning_rate=trial.suggest_categorical("learning_rate", RATES))

    more = dict(h=HORIZON, config=config, backend="optuna", num_samples=len(RATES)) | more
    if name == "AutoiTransformer":
        more["n_series"] = 2
    sampler = optuna.samplers.GridSampler({"learning_rate": RATES}, seed=0)
    return getattr(auto, name)(search_alg=sampler, **more)


def search(model: Any) -> tuple[NeuralForecast, dict[float, float], np.ndarray]:
    """The trained NeuralForecast, the loss of each rate, and the forecasts."""
    past, _, _ = series()
    forecaster = NeuralForecast(models=[model], freq="D")
    forecaster.fit(past, val_size=HORIZON)
    trials = forecaster.models[0].results.trials
    losses = {trial.params["learning_rate"]: trial.value for trial in trials}
    return forecaster, losses, forecaster.predict().iloc[:, -1].to_numpy()


@pytest.mark.parametrize("name", CLASSES)
def test_trials_and_forecasts_match_the_original(name: str, tmp_path: Path) -> None:
    _, expected_losses, expected = search(make(name, []))
    model = make(name, [recorder(tmp_path / "fits")])
    assert accelerate(model) is model
    _, losses, found = search(model)
    assert sorted(losses) == RATES
    for rate, loss in losses.items():
        assert loss == pytest.approx(expected_losses[rate], rel=1e-4)  # float32, a few steps
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    fits = recorded(tmp_path / "fits")
    assert fits == [(os.getpid(), "AcceleratedForward")] * (len(RATES) + 1), "trials and refit"


def test_saved_restored_and_accelerated_after_the_search(tmp_path: Path) -> None:
    forecaster, _, expected = search(make("AutoPatchTST", []))
    accelerate(forecaster)
    model = forecaster.models[0]
    assert type(model.model.forward).__name__ == "AcceleratedForward"
    np.testing.assert_allclose(forecaster.predict().iloc[:, -1], expected, rtol=1e-4, atol=1e-4)
    forecaster.save(str(tmp_path / "saved"))
    restore(forecaster)
    assert model.cls_model.__name__ == "PatchTST"
    assert "forward" not in vars(model.model)
    np.testing.assert_array_equal(forecaster.predict().iloc[:, -1], expected)
    again = accelerate(NeuralForecast.load(str(tmp_path / "saved")))
    np.testing.assert_allclose(again.predict().iloc[:, -1], expected, rtol=1e-4, atol=1e-4)


def test_copies_stay_accelerated_and_settings_can_change() -> None:
    model = accelerate(make("AutoAutoformer", []))
    assert copy.deepcopy(model).cls_model == model.cls_model
    again = accelerate(model, use_flash_attention=True, flash_block_size=32)
    network = again.cls_model(h=HORIZON, input_size=PAST)
    assert network.forward.engine.setup.use_flash_attention
    assert network.forward.engine.setup.flash_block_size == 32
    assert restore(again).cls_model.__name__ == "Autoformer"


def test_other_auto_models_are_refused() -> None:
    with pytest.raises(TypeError, match="an Auto. model of these.*neuralforecast.models.nhits.NHI"):
        accelerate(auto.AutoNHITS(h=HORIZON, backend="ray"))


@pytest.mark.parametrize("backend", ["ray", "optuna"])
def test_configuration_for_another_device_is_refused(backend: str) -> None:
    config: Any = FIXED | dict(accelerator="gpu")
    if backend == "optuna":
        config = lambda trial: FIXED | dict(accelerator="gpu")  # noqa: E731
    model = auto.AutoPatchTST(h=HORIZON, config=config, backend=backend)
    with pytest.raises(ValueError, match="runs on the CPU, got accelerator='gpu'"):
        accelerate(model)
    assert model.cls_model.__name__ == "PatchTST"


def test_default_device_of_a_machine_with_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = auto.AutoPatchTST(h=HORIZON, backend="ray")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="runs on the CPU, got accelerator='gpu'"):
        accelerate(model)


@pytest.fixture
def one_ray_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local Ray with one process for trials, which gets as much of the CPU as this one."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("one_ray_worker")
def test_trials_in_processes_of_ray(tmp_path: Path) -> None:
    config = FIXED | OPTIONS["AutoPatchTST"] | dict(learning_rate=tune.choice(RATES[1:2]))
    _, losses, expected = search(make("AutoPatchTST", [], num_samples=len(RATES)))
    model = auto.AutoPatchTST(
        h=HORIZON,
        config=config | dict(callbacks=[recorder(tmp_path / "fits")]),
        num_samples=1,
        ray_options=RayOptions(
            cpus=1, run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0)
        ),
    )
    past, _, _ = series()
    forecaster = NeuralForecast(models=[accelerate(model)], freq="D")
    forecaster.fit(past, val_size=HORIZON)
    result = forecaster.models[0].results.get_best_result()
    assert result.metrics["loss"] == pytest.approx(losses[RATES[1]], rel=1e-4)
    trial, refit = recorded(tmp_path / "fits")
    assert trial[1] == refit[1] == "AcceleratedForward"
    assert refit[0] == os.getpid() != trial[0]
