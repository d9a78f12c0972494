"""Model objects of neuralforecast that compute with the C++ models."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from flash_attention.models import _classes
from flash_attention.models._engine import Engine, Setup
from flash_attention.models._module import AROUND_THE_NETWORK
from torch import Tensor, nn

SUPPORTED = "3.3"
"""The release of neuralforecast whose networks the C++ models implement."""

CHANGED_BY_FLASH = ("Autoformer", "FEDformer")
"""Classes in which flash attention replaces another mechanism."""

EMBEDDINGS = tuple(f"{kind}_cat_embeddings." for kind in ("hist", "futr", "stat"))
"""Parameters of categorical columns; neuralforecast applies them before the network."""

Model = TypeVar("Model", bound=nn.Module)


def accelerate(
    model: Model,
    *,
    use_flash_attention: bool | None = None,
    flash_block_size: int = 64,
    gradient_checkpointing: bool = False,
) -> Model:
    """Make a model object of neuralforecast compute in C++; its weights stay the same objects.

    Only `forward` is replaced. `fit`, `predict`, `cross_validation`, losses, scalers, exogenous
    columns, copies, `save` and `load` are neuralforecast's own, before training and after it:

        models = [accelerate(PatchTST(h=24, input_size=96, max_steps=500))]
        NeuralForecast(models=models, freq="h").fit(df)

    Results equal neuralforecast's up to rounding, except for

    - dropout, which draws other random numbers with the same probability;
    - three bugs of neuralforecast that are not reproduced: Informer with n_head=1 leaks between
      windows, Informer that samples a single key (factor=1 and two keys) confuses heads with
      queries, and PatchTST with res_attention=False and attn_dropout above 0 drops attention
      weights in prediction;
    - TFT's `feature_importances()` and attention weights, which are not recorded: reading them
      raises an error that refers to `restore`.

    neuralforecast's `load` returns a model that is not accelerated, so call `accelerate` again. A
    `copy.deepcopy` or `pickle` of an accelerated object is accelerated.

    Args:
        model: a TFT, Informer, Autoformer, FEDformer, PatchTST or iTransformer of neuralforecast
            3.3, trained or not, that runs on the CPU.
        use_flash_attention: None means True except for Autoformer and FEDformer. True replaces
            their mechanism by softmax attention: a different model, which must be trained as such.
        flash_block_size: keys per online-softmax step of the operator, at least 1.
        gradient_checkpointing: recompute each layer in the backward: less memory, more time.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not an object of one of the six, or its class overrides `forward`.
        ValueError: the release of neuralforecast is not supported, the model is configured for
            a device other than the CPU, or it has an option that the C++ model lacks.
    """
    name = _network_class(model).__name__
    _check_surroundings(model)
    if use_flash_attention is None:
        use_flash_attention = name not in CHANGED_BY_FLASH
    loss: Any = model.loss
    setup = Setup(
        name,
        json.dumps(_options(model, name)),
        loss.outputsize_multiplier,
        use_flash_attention,
        flash_block_size,
        gradient_checkpointing,
    )
    engine = Engine(setup)
    _check_names(model, engine)
    model.forward = AcceleratedForward(model, engine)
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`, keeping the weights. Does nothing to a model that is not accelerated."""
    if isinstance(model.__dict__.get("forward"), AcceleratedForward):
        del model.forward
        network: Any = model
        if isinstance(getattr(network, "interpretability_params", None), NotRecorded):
            network.interpretability_params = {}
    return model


class AcceleratedForward:
    """Replaces the `forward` of one object, and is copied with it."""

    def __init__(self, model: Any, engine: Engine) -> None:
        self.model = model
        self.engine = engine

    def __call__(self, windows_batch: Mapping[str, Tensor | None]) -> Tensor:
        """Return neuralforecast's raw output."""
        if hasattr(self.model, "interpretability_params"):
            self.model.interpretability_params = NotRecorded()
        return self.engine.forward(self.model, windows_batch)


class NotRecorded(dict[str, Any]):
    """Takes the place of TFT's recorded weights; reading it raises RuntimeError."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError(
            "flash_attention.models: an accelerated TFT does not record its attention and variable "
            "selection weights; call flash_attention.models.restore(model) and predict again"
        )

    __getitem__ = get = items = values = keys = _refuse

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> tuple[type[NotRecorded], tuple[()]]:
        return NotRecorded, ()


def _network_class(model: nn.Module) -> type[nn.Module]:
    """Return neuralforecast's class of `model`."""
    cls: Any
    for cls in type(model).__mro__:
        ours = cls.__name__ in _classes.__all__
        if not (ours and cls.__module__.startswith("neuralforecast.models.")):
            continue
        if type(model).forward is not cls.forward:
            raise TypeError(
                f"accelerate: expected {type(model).__name__} to have the forward of "
                f"{cls.__name__}, got one of its own, which would be ignored"
            )
        return cls
    raise TypeError(
        "accelerate: expected a model object of neuralforecast, one of "
        f"{', '.join(_classes.__all__)}, got {type(model).__module__}.{type(model).__qualname__}"
    )


def _check_surroundings(model: Any) -> None:
    version = importlib.metadata.version("neuralforecast")
    if not version.startswith(SUPPORTED + "."):
        raise ValueError(
            f"accelerate: expected neuralforecast {SUPPORTED}, which the C++ models match, "
            f"got {version}; run\n    python3 -m pip install 'neuralforecast=={SUPPORTED}.*'"
        )
    accelerator = model.trainer_kwargs.get("accelerator")
    if (
        isinstance(accelerator, str)
        and accelerator not in ("cpu", "auto")
        or (accelerator == "auto" and torch.accelerator.is_available())
    ):
        raise ValueError(
            f"accelerate: expected a model that runs on the CPU, got accelerator={accelerator!r}; "
            'create it with accelerator="cpu", or keep the original on the GPU'
        )


def _options(model: Any, name: str) -> dict[str, Any]:
    """Return the options of the network, from the object's hyperparameters."""
    given = model.hparams
    options: dict[str, Any] = {}
    for option in inspect.signature(getattr(_classes, name)).parameters:
        if option.endswith("_exog_list"):
            # The number of columns in forward, where categorical columns are embedded already.
            size = getattr(model, option.removesuffix("_list") + "_size")
            options[option] = [f"{option.removesuffix('_list')}_{i}" for i in range(size)]
        elif option in given:
            options[option] = given[option]
    if name == "iTransformer":
        options["n_series"] = model.n_series
    if name == "FEDformer":
        options["fourier_index"] = _fourier_index(model)
    return options


def _fourier_index(model: Any) -> dict[str, list[int]]:
    """Return the frequencies, which are not parameters."""
    encoder = model.encoder.attn_layers[0].attention.inner_correlation
    decoder = model.decoder.layers[0].self_attention.inner_correlation
    cross = model.decoder.layers[0].cross_attention.inner_correlation
    lists = {
        "enc_self": encoder.index,
        "dec_self": decoder.index,
        "dec_cross_q": cross.index_q,
        "dec_cross_kv": cross.index_kv,
    }
    return {key: [int(mode) for mode in modes] for key, modes in lists.items()}


def _check_names(model: nn.Module, engine: Engine) -> None:
    """Check that the object and the C++ model have the same weights."""
    engine.tensors(model)
    known = {name for names in engine.names() for name in names}
    ignored = (*AROUND_THE_NETWORK, *EMBEDDINGS)
    unknown = [
        name
        for name in model.state_dict()
        if name not in known and not name.startswith(ignored) and not name.endswith("._mask")
    ]
    if unknown:
        raise ValueError(
            f"accelerate: expected only the parameters of {engine.setup.model_class}, got also "
            f"{', '.join(unknown)}"
        )
