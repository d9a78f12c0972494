"""Forecaster whatever torch's global state, on several threads, copied and pickled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_attention import models
from flash_attention.models import Forecaster

pytestmark = pytest.mark.once

H, PAST = 4, 48

SMALL: dict[str, dict[str, Any]] = {
    "PatchTST": dict(hidden_size=8, n_heads=2, patch_len=8, stride=4),
    "TFT": dict(hidden_size=8, n_head=2),
    "Informer": dict(hidden_size=16, n_head=2, factor=1),
    "Autoformer": dict(hidden_size=8, n_head=2),
    "FEDformer": dict(hidden_size=8, n_head=8),
    "iTransformer": dict(n_series=1, hidden_size=8, n_heads=2, d_ff=8),
}

Y = 5 + torch.sin(0.7 * torch.arange(60.0))


def saved(name: str, folder: Path) -> Path:
    """A file of a small model."""
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    getattr(models, name)(h=H, input_size=PAST, **SMALL[name]).save(path)
    return path


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_threads_share_an_informer_and_leave_torchs_generator_alone(tmp_path: Path) -> None:
    path = saved("Informer", tmp_path)
    network = models.Informer.from_checkpoint(path).eval()
    samples = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            samples.append(network(Y[-PAST:].view(1, PAST, 1)))
    assert not torch.equal(*samples), "the samples of keys have no effect"

    forecaster = Forecaster.load(path)
    expected = forecaster.predict(Y)
    torch.manual_seed(0)
    alone = torch.stack([torch.rand(3) for _ in range(500)])
    torch.manual_seed(0)
    with ThreadPoolExecutor(4) as pool:
        forecasts = [pool.submit(forecaster.predict, Y) for _ in range(200)]
        beside = torch.stack([torch.rand(3) for _ in range(500)])
        assert all(torch.equal(forecast.result(), expected) for forecast in forecasts)
    assert torch.equal(beside, alone)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = saved("PatchTST", tmp_path)
    state = torch.get_rng_state()
    Forecaster.load(path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_dtype_changes_nothing(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = saved(name, tmp_path)
    before = Forecaster.load(path)
    expected = before.predict(Y)
    with default_dtype(dtype):
        forecaster = Forecaster.load(path)
        assert torch.equal(forecaster.predict(Y), expected)
        assert torch.equal(before.predict(Y), expected)
    assert expected.dtype == torch.float32
    assert torch.equal(forecaster.predict(Y), expected)


@pytest.mark.parametrize("name", SMALL)
def test_autocast_changes_nothing(name: str, tmp_path: Path) -> None:
    forecaster = Forecaster.load(saved(name, tmp_path))
    expected = forecaster.predict(Y)
    with torch.autocast("cpu"):
        assert torch.equal(forecaster.predict(Y), expected)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["Informer", "FEDformer"])
def test_copies_forecast_the_same(name: str, tmp_path: Path) -> None:
    forecaster = Forecaster.load(saved(name, tmp_path))
    expected = forecaster.predict(Y)
    for again in (
        pickle.loads(pickle.dumps(forecaster)),
        copy.deepcopy(forecaster),
        copy.copy(forecaster),
    ):
        assert repr(again) == repr(forecaster)
        assert torch.equal(again.predict(Y), expected)


def test_name_of_a_model_must_be_one(tmp_path: Path) -> None:
    for wrong in (3, 0, b"PatchTST_0"):
        with pytest.raises(TypeError, match="expected `model` as a name or None, got"):
            Forecaster.load(tmp_path, model=wrong)  # type: ignore[arg-type]
