"""neuralforecast loads our model files."""

from __future__ import annotations

import logging
from pathlib import Path

import neuralforecast.models
import pytest
import torch
from flash_attention import models

from support import model_fixtures
from support.model_fixtures import FOLDER
from support.tolerances import model_float32

pytestmark = pytest.mark.once

# Written by neuralforecast's own `save`; see tests/fixtures/make_fixtures.py.
THEIRS = {
    "TFT": "neuralforecast_tft",
    "Informer": "neuralforecast_informer",
    "Autoformer": "neuralforecast_autoformer",
    "FEDformer": "neuralforecast_fedformer",
    "PatchTST": "neuralforecast_checkpoint",
    "iTransformer": "neuralforecast_itransformer",
}

# Fixtures with one output, as files without a loss must have.
POINT_FORECASTS = {
    "TFT": "tft_noexog",
    "Informer": "informer_distil",
    "Autoformer": "autoformer_even",
    "FEDformer": "fedformer_defaultmodes_odd",
    "PatchTST": "patchtst_default_like",
    "iTransformer": "itransformer_futr",
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Silences the constructors, which report every seed."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)


def load_theirs(model_class: str, path: Path) -> torch.nn.Module:
    """neuralforecast's model from a file, in eval mode."""
    return getattr(neuralforecast.models, model_class).load(str(path)).eval()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict without the quantiles of the loss."""
    state = model.state_dict()
    return {k: t for k, t in state.items() if not k.startswith(("loss.", "valid_loss."))}


def assert_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("model_class", sorted(POINT_FORECASTS))
def test_neuralforecast_loads_our_file_and_predicts_the_same(model_class: str, tmp_path: Path):
    fixture = model_fixtures.load(POINT_FORECASTS[model_class])
    ours = fixture.model().eval()
    ours.save(tmp_path / "ours.safetensors")
    theirs = load_theirs(model_class, tmp_path / "ours.safetensors")
    assert {name: theirs.hparams[name] for name in fixture.arguments if name in theirs.hparams} == {
        name: value for name, value in fixture.arguments.items() if name in theirs.hparams
    }
    windows = fixture.windows(torch.float32)
    with torch.no_grad():
        expected, got = fixture.forward(theirs, dict(windows)), fixture.forward(ours, windows)
    gap = fixture.description["f32_vs_f64_max_abs"]
    torch.testing.assert_close(got, expected, rtol=0, atol=2 * model_float32(gap))


@pytest.mark.parametrize("model_class", sorted(THEIRS))
def test_neuralforecast_file_round_trip(model_class: str, tmp_path: Path):
    path = FOLDER / f"{THEIRS[model_class]}.safetensors"
    models.load(path).save(tmp_path / "ours.safetensors")
    before = load_theirs(model_class, path)
    after = load_theirs(model_class, tmp_path / "ours.safetensors")
    assert_equal(weights(after), weights(before))
    assert type(after.loss) is type(before.loss)
    assert after.loss.outputsize_multiplier == before.loss.outputsize_multiplier
    assert str(dict(after.hparams)) == str(dict(before.hparams))
