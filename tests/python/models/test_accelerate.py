"""`accelerate` and `restore` on mocks of neuralforecast's objects.

The tests in tests/python/originals use the real ones; they need neuralforecast installed.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_attention import models
from flash_attention.models import accelerate, restore

pytestmark = pytest.mark.once

# Without FEDformer: its frequencies are read from neuralforecast's own objects.
OPTIONS: dict[str, dict[str, Any]] = {
    "TFT": dict(hidden_size=8, n_head=2),
    "Informer": dict(hidden_size=8, n_head=2, conv_hidden_size=8),
    "Autoformer": dict(hidden_size=8, n_head=2, conv_hidden_size=8),
    "PatchTST": dict(hidden_size=8, n_heads=2, linear_hidden_size=16, patch_len=6, stride=3),
    "iTransformer": dict(hidden_size=8, n_heads=2, d_ff=16, n_series=2),
}


@pytest.fixture(autouse=True)
def supported_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mocks a supported release, whether or not neuralforecast is installed."""
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.3.1")


def options_of(name: str) -> dict[str, Any]:
    """Constructor arguments of a small network."""
    return dict(h=4, input_size=24) | OPTIONS[name]


def mock_class(name: str) -> type[torch.nn.Module]:
    """A mock of neuralforecast's class, with its name, module and parameters."""
    contents = {
        "__module__": f"neuralforecast.models.{name.lower()}",
        "forward": lambda self, windows_batch: "original",
    }
    return type(name, (getattr(models, name),), contents)


def mock_object(cls: type[torch.nn.Module], accelerator: str = "cpu", **trainer: Any) -> Any:
    """An object of such a class, with the attributes of neuralforecast's objects."""
    options = options_of(cls.model_class())
    model = cls(**options)
    model.hparams = options
    model.n_series = options.get("n_series", 1)
    model.loss = SimpleNamespace(outputsize_multiplier=1)
    model.trainer_kwargs = {"accelerator": accelerator} | trainer
    model.futr_exog_size = model.hist_exog_size = model.stat_exog_size = 0
    return model


def windows_of(model: Any) -> dict[str, torch.Tensor]:
    """A batch of windows."""
    return {"insample_y": torch.randn(3, 24, model.n_series)}


def uses_flash_attention(model: Any) -> bool:
    """Whether an accelerated object uses flash attention."""
    return model.forward.engine.setup.use_flash_attention


@pytest.mark.parametrize("name", OPTIONS)
def test_accelerated_object_matches_our_model(name: str) -> None:
    model = mock_object(mock_class(name)).eval()
    windows = windows_of(model)
    assert model(windows) == "original"
    assert accelerate(model) is model
    flash = uses_flash_attention(model)
    ours = getattr(models, name)(**options_of(name), use_flash_attention=flash).eval()
    ours.load_state_dict(model.state_dict())
    torch.manual_seed(1)  # Informer samples keys at random
    expected = ours(windows)
    torch.manual_seed(1)
    assert torch.equal(model(windows), expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_flash_attention_is_the_default_where_it_is_exact(name: str) -> None:
    assert uses_flash_attention(accelerate(mock_object(mock_class(name)))) == (name != "Autoformer")
    for asked in (False, True):
        model = accelerate(mock_object(mock_class(name)), use_flash_attention=asked)
        assert uses_flash_attention(model) == asked


def test_restore_undoes_accelerate_and_ignores_other_objects() -> None:
    model = mock_object(mock_class("PatchTST"))
    windows = windows_of(model)
    assert restore(model)(windows) == "original"
    assert isinstance(accelerate(model)(windows), torch.Tensor)
    assert restore(model) is model
    assert model(windows) == "original"
    assert restore(model)(windows) == "original"
    assert isinstance(accelerate(model)(windows), torch.Tensor)


@pytest.mark.parametrize("version", ["3.2.9", "3.4.0", "3.30.0", "4.3.0"])
def test_unsupported_release_error_gives_the_pip_command(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    model = mock_object(mock_class("PatchTST"))
    message = rf"expected neuralforecast 3\.3, .*got {version}; run\n +python3 -m pip install "
    with pytest.raises(ValueError, match=message + r"'neuralforecast==3\.3\.\*'"):
        accelerate(model)
    assert model(windows_of(model)) == "original"


def test_overridden_forward_is_refused() -> None:
    own = type("Own", (mock_class("PatchTST"),), {"forward": lambda self, windows_batch: "other"})
    with pytest.raises(TypeError, match="expected Own to have the forward of PatchTST, got one of"):
        accelerate(mock_object(own))


def test_model_for_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="that runs on the CPU, got accelerator='gpu'"):
        accelerate(mock_object(mock_class("PatchTST"), accelerator="gpu"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "16", 16])
def test_model_of_16_bits_is_refused(precision: Any) -> None:
    model = mock_object(mock_class("PatchTST"), precision=precision)
    with pytest.raises(ValueError, match=f"with 32 or 64 bits, .* got precision={precision!r};"):
        accelerate(model)
    assert not accelerated(model)
    with pytest.raises(ValueError, match="with 32 or 64 bits"):
        accelerate(mock_auto(mock_class("PatchTST"), {"precision": precision}))


@pytest.mark.parametrize("precision", [None, 32, "32-true", "64-true"])
def test_other_precisions_are_not_refused(precision: Any) -> None:
    assert accelerated(accelerate(mock_object(mock_class("PatchTST"), precision=precision)))


def test_forward_of_an_object_is_not_replaced() -> None:
    model = mock_object(mock_class("PatchTST"))
    model.forward = own = lambda windows_batch: "own"
    for given in (model, mock_forecaster(model)):
        with pytest.raises(TypeError, match="object with one of its own, which would be ignored"):
            accelerate(given)
    assert model.forward is own


def test_restore_refuses_what_accelerate_never_takes() -> None:
    model = accelerate(mock_object(mock_class("PatchTST")))
    with pytest.raises(TypeError, match=r"restore: expected a model object .*, got list"):
        restore([model])
    assert accelerated(model)


def test_our_own_models_are_refused() -> None:
    ours = models.PatchTST(**options_of("PatchTST"))
    with pytest.raises(TypeError, match="expected a model object of neuralforecast, one of TFT, "):
        accelerate(ours)


def mock_auto(cls: type[torch.nn.Module], config: Any = None) -> Any:
    """A mock of an Auto* model that has not searched yet."""
    base = type("BaseAuto", (), {"__module__": "neuralforecast.common._base_auto"})
    model = type("Auto" + cls.__name__, (base,), {})()
    model.cls_model, model.config = cls, config or {}
    return model


def mock_forecaster(*models: Any) -> Any:
    """A mock of a NeuralForecast."""
    cls = type("NeuralForecast", (), {"__module__": "neuralforecast.core"})
    forecaster = cls()
    forecaster.models_init, forecaster.models = list(models), copy.deepcopy(list(models))
    return forecaster


def accelerated(model: Any) -> bool:
    """Whether the object computes in C++."""
    return isinstance(model(windows_of(model)), torch.Tensor)


def test_all_models_of_a_forecaster_are_accelerated_and_restored() -> None:
    forecaster = mock_forecaster(*(mock_object(mock_class(name)) for name in OPTIONS))
    assert accelerate(forecaster) is forecaster
    everything = [*forecaster.models_init, *forecaster.models]
    assert all(map(accelerated, everything))
    assert [uses_flash_attention(model) for model in forecaster.models] == [
        name != "Autoformer" for name in OPTIONS
    ]
    assert restore(forecaster) is forecaster
    assert not any(map(accelerated, everything))


def test_unsupported_models_of_a_forecaster_are_named_and_skipped_on_request() -> None:
    ours, other = mock_object(mock_class("PatchTST")), torch.nn.Linear(1, 1)
    forecaster = mock_forecaster(ours, other)
    advice = "skip_unsupported=True accelerates only the others"
    with pytest.raises(TypeError, match=rf"got Linear; {advice}\n    Linear: expected a model obj"):
        accelerate(forecaster)
    assert not accelerated(ours), "nothing has changed"
    accelerate(forecaster, skip_unsupported=True)
    assert accelerated(ours)
    with pytest.raises(
        TypeError, match="and Auto. models of these, got Linear\n    Linear: expected a model obj"
    ):
        accelerate(mock_forecaster(other), skip_unsupported=True)


def test_a_refused_model_leaves_the_others_of_a_forecaster_unchanged() -> None:
    first, last = (
        mock_object(mock_class("PatchTST"), accelerator) for accelerator in ("cpu", "gpu")
    )
    with pytest.raises(ValueError, match="that runs on the CPU, got accelerator='gpu'"):
        accelerate(mock_forecaster(first, last))
    assert not accelerated(first)


def test_auto_model_constructs_accelerated_models() -> None:
    original = mock_class("Autoformer")
    # As neuralforecast's classes, which construct from options alone.
    cls = type("Complete", (original,), {"__new__": lambda _: mock_object(original)})
    model = mock_auto(cls)
    assert accelerate(model, use_flash_attention=True, flash_block_size=32) is model
    network = copy.deepcopy(model).cls_model()
    assert accelerated(network)
    setup = network.forward.engine.setup
    assert (setup.use_flash_attention, setup.flash_block_size) == (True, 32)
    assert not uses_flash_attention(accelerate(model).cls_model()), "the last call counts"
    assert not accelerated(restore(model).cls_model())


def test_auto_model_for_another_device_is_refused() -> None:
    model = mock_auto(mock_class("PatchTST"), {"accelerator": "gpu"})
    with pytest.raises(ValueError, match="that runs on the CPU, got accelerator='gpu'"):
        accelerate(model)
    with pytest.raises(TypeError, match="an Auto. model of these, or a NeuralForecast, got torch"):
        accelerate(mock_auto(torch.nn.Linear))


READS = {
    "list": list,
    "len": len,
    "in": lambda weights: "attn_wts" in weights,
    "dict": dict,
    "unpacked": lambda weights: {**weights},
    "item": lambda weights: weights["attn_wts"],
    "get": lambda weights: weights.get("attn_wts"),
    "pop": lambda weights: weights.pop("attn_wts", None),
    "union": lambda weights: weights | {},
    "union from the right": lambda weights: {} | weights,
    "comparison": lambda weights: weights == {},
    "repr": repr,
    "copy": lambda weights: weights.copy(),
    "reversed": lambda weights: list(reversed(weights)),
    "setdefault": lambda weights: weights.setdefault("attn_wts", 1),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_weights_that_are_not_recorded_cannot_be_read(read: Any) -> None:
    model = mock_object(mock_class("TFT"))
    model.interpretability_params = {}
    accelerate(model)(windows_of(model))
    with pytest.raises(RuntimeError, match="does not record its attention and variable selection"):
        read(model.interpretability_params)
    again = copy.deepcopy(model)
    assert type(again.interpretability_params) is type(model.interpretability_params)
    assert list(restore(model).interpretability_params) == []
