"""Loads tests/fixtures, the recorded results of the original models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flash_attention import models
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parents[2] / "fixtures"

# For each class, a fixture that is easy to train and uses most features of its model.
TYPICAL = {
    "TFT": "tft_exog_mq_lstm2",
    "Informer": "informer_futr_nodistil_mq",
    "Autoformer": "autoformer_odd_futr_declonger_mq",
    "FEDformer": "fedformer_random_futr_mq",
    "PatchTST": "patchtst_default_like",
    "iTransformer": "itransformer_futr",
}

# Recorded with a bug of neuralforecast: queries selected for one window leak into the others.
NOT_REPRODUCED = {"informer_onehead_quirk"}


@dataclass(frozen=True)
class Fixture:
    """One recorded case; make_fixtures.py documents the keys of `tensors`."""

    name: str
    description: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def model_class(self) -> str:
        return self.description["case"]["model"]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor arguments of this model."""
        arguments = dict(self.description["case"]["kw"])
        arguments["output_size"] = self.description["derived"]["out_mult"]
        if self.model_class == "FEDformer":
            arguments["fourier_index"] = self.description["fourier_index"]
        return arguments

    @property
    def changed_by_flash(self) -> bool:
        """Whether use_flash_attention changes the model's results."""
        return self.model_class in ("Autoformer", "FEDformer")

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose key starts with `prefix`, without it; "#ri" tensors as complex ones."""
        found = {}
        for key, tensor in self.tensors.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                complex_ = name.endswith("#ri")
                found[name.removesuffix("#ri")] = (
                    torch.view_as_complex(tensor.contiguous()) if complex_ else tensor
                )
        return found

    def windows(self, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
        """The input of `forward`."""
        given = {name: tensor.to(dtype) for name, tensor in self.under("input/").items()}
        return dict.fromkeys(("futr_exog", "hist_exog", "stat_exog")) | given

    def weights(self, model: models.ForecastModel) -> dict[str, torch.Tensor]:
        """A state_dict for `model`: the recorded weights, and its own omitted ones."""
        weights = self.under("param/")
        for alias, owner in self.description["tied_keys"].items():
            weights[alias] = weights[owner]
        for key, tensor in model.state_dict().items():
            if key in self.description["omitted_state_dict_keys"]:
                weights[key] = tensor
        return weights

    def model(self, dtype: torch.dtype = torch.float32, **settings: Any) -> models.ForecastModel:
        """Our model with the recorded weights, in the recorded mode."""
        model = getattr(models, self.model_class)(**self.arguments, **settings)
        model.load_state_dict(self.weights(model))
        return model.to(dtype).train(self.description["case"]["mode"] == "train")

    def forward(self, model: models.ForecastModel, windows: Any) -> torch.Tensor:
        """The output, with the recorded seed of torch's generator."""
        torch.manual_seed(self.description["case"]["fwd_seed"])
        return model(windows)


@cache
def load(name: str) -> Fixture:
    """The fixture of that name."""
    description = json.loads((FOLDER / f"{name}.json").read_text())
    return Fixture(name, description, load_file(FOLDER / f"{name}.safetensors"))


def names() -> list[str]:
    """All fixtures of models whose results must be reproduced."""
    every = {path.stem for path in FOLDER.glob("*.json") if "case" in json.loads(path.read_text())}
    return sorted(every - NOT_REPRODUCED)


def small(**settings) -> models.PatchTST:
    """A small, fast PatchTST."""
    options = dict(hidden_size=8, n_heads=2, linear_hidden_size=16, patch_len=6, stride=3)
    return models.PatchTST(h=4, input_size=24, encoder_layers=2, **(options | settings))


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)
