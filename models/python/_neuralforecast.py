"""Objects of neuralforecast that compute with the C++ models."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

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

FORECASTER = ("neuralforecast.core", "NeuralForecast")
AUTO = ("neuralforecast.common._base_auto", "BaseAuto")
"""Modules and names of neuralforecast's classes that hold or construct models."""

PRECISIONS = ("32", "32-true", "64", "64-true")
"""Lightning's names of those that the C++ models compute in."""

Object = TypeVar("Object")


def accelerate(
    model: Object,
    *,
    use_flash_attention: bool | None = None,
    flash_block_size: int = 64,
    gradient_checkpointing: bool = False,
    skip_unsupported: bool = False,
) -> Object:
    """Make an object of neuralforecast compute in C++; its weights stay the same objects.

    It takes a model, an Auto* model, or a NeuralForecast with all its models:

        forecaster = NeuralForecast(models=[PatchTST(h=24, input_size=96)], freq="h")
        accelerate(forecaster).fit(df)

    Of a model only `forward` is replaced. `fit`, `predict`, `cross_validation`, losses, scalers,
    exogenous columns, copies, `save` and `load` are neuralforecast's own, before training and after
    it. Every trial of an Auto* model, with Ray or Optuna, and its final fit construct accelerated
    models. So do the processes of a distributed `fit`.

    Results equal neuralforecast's up to rounding, except for

    - dropout, which draws other random numbers with the same probability;
    - three bugs of neuralforecast that are not reproduced: Informer with n_head=1 leaks between
      windows, Informer that samples a single key (factor=1 and two keys) confuses heads with
      queries, and PatchTST with res_attention=False and attn_dropout above 0 drops attention
      weights in prediction;
    - TFT's `feature_importances()` and attention weights, which are not recorded: reading them
      raises an error that refers to `restore`.

    neuralforecast's `load` returns an object that is not accelerated, so call `accelerate` again. A
    `copy.deepcopy` or `pickle` of an accelerated object is accelerated. After an error nothing has
    changed.

    Args:
        model: a TFT, Informer, Autoformer, FEDformer, PatchTST or iTransformer of neuralforecast
            3.3, trained or not, that runs on the CPU; or AutoTFT and so on; or a NeuralForecast,
            whose models are changed in place, the list given to its constructor too.
        use_flash_attention: None means True except for Autoformer and FEDformer. True replaces
            their mechanism by softmax attention: a different model, which must be trained as such.
        flash_block_size: keys per online-softmax step of the operator, at least 1.
        gradient_checkpointing: recompute each layer in the backward: less memory, more time.
        skip_unsupported: leave models of other classes in a NeuralForecast as they are.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not one of these, or its class overrides `forward`, or the object has
            one of its own; or a NeuralForecast has such models, without `skip_unsupported`, or no
            others.
        ValueError: the release of neuralforecast is not supported, a model is configured for
            a device other than the CPU or for a precision other than 32 or 64 bits, or it has an
            option that the C++ model lacks. Where the configuration of an Auto* model samples one,
            its trial raises the error.
    """
    settings = Settings(use_flash_attention, flash_block_size, gradient_checkpointing)
    replacements: list[Replacement] = []
    for part in _supported_parts(model, skip_unsupported):
        replacements += _replacements(part, settings)
    for owner, attribute, value in replacements:
        setattr(owner, attribute, value)
    return model


def restore(model: Object) -> Object:
    """Undo `accelerate`, keeping the weights. Does nothing to a model that is not accelerated.

    Raises:
        TypeError: `model` is neither a model nor a NeuralForecast.
    """
    if not (_is_a(model, FORECASTER) or _is_a(model, AUTO) or isinstance(model, nn.Module)):
        raise TypeError(
            "restore: expected a model object of neuralforecast, an Auto* model, or a "
            f"NeuralForecast, got {type(model).__name__}"
        )
    for part in _parts(model):
        if isinstance(getattr(part, "cls_model", None), AcceleratedClass):
            part.cls_model = part.cls_model.original
        for network in (part, *_fitted(part)):
            if isinstance(getattr(network, "forward", None), AcceleratedForward):
                del network.forward, network._fit_distributed
                if isinstance(getattr(network, "interpretability_params", None), NotRecorded):
                    network.interpretability_params = {}
    return model


@dataclass(frozen=True)
class Settings:
    """Arguments of `accelerate` that apply to each model."""

    use_flash_attention: bool | None
    flash_block_size: int
    gradient_checkpointing: bool


class Replacement(NamedTuple):
    """What `accelerate` does to an object."""

    owner: Any
    attribute: str
    value: Any


@dataclass(frozen=True)
class AcceleratedClass:
    """Called like a class of neuralforecast, constructs accelerated objects of it."""

    original: type[nn.Module]
    settings: Settings

    def __call__(self, **options: Any) -> nn.Module:
        """Construct a model."""
        return accelerate(self.original(**options), **asdict(self.settings))


class AcceleratedForward:
    """Replaces the `forward` of one model object, and is copied with it."""

    def __init__(self, model: Any, engine: Engine, settings: Settings) -> None:
        self.model = model
        self.engine = engine
        self.settings = settings

    def __call__(self, windows_batch: Mapping[str, Tensor | None]) -> Tensor:
        """Return neuralforecast's raw output."""
        if hasattr(self.model, "interpretability_params"):
            self.model.interpretability_params = NotRecorded()
        return self.engine.forward(self.model, windows_batch)

    def fit_distributed(self, *arguments: Any) -> Any:
        """Replaces `_fit_distributed`, whose processes construct the model: `type(self)(...)`."""
        cls = type(self.model)
        construct = AcceleratedClass(cls, self.settings)

        class Constructor:
            """Takes the place of the model, and its class that of the model's class."""

            def __new__(_, **options: Any) -> Any:
                return construct(**options)

        model: Any = object.__new__(Constructor)
        model.hparams, model.trainer_kwargs = self.model.hparams, self.model.trainer_kwargs
        return cls._fit_distributed(model, *arguments)


class NotRecorded(dict[str, Any]):
    """Takes the place of TFT's recorded weights; reading it in any way raises RuntimeError."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError(
            "flash_attention.models: an accelerated TFT does not record its attention and variable "
            "selection weights; call flash_attention.models.restore(model) and predict again"
        )

    __getitem__ = get = items = values = keys = copy = pop = popitem = setdefault = _refuse
    __iter__ = __reversed__ = __len__ = __contains__ = __eq__ = __ne__ = _refuse
    __or__ = __ror__ = __ior__ = __repr__ = _refuse

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> tuple[type[NotRecorded], tuple[()]]:
        return NotRecorded, ()


def _is_a(model: object, module_and_name: tuple[str, str]) -> bool:
    """Whether `model` is an object of neuralforecast's class, which need not be installed."""
    return any((c.__module__, c.__name__) == module_and_name for c in type(model).__mro__)


def _parts(model: Any) -> list[Any]:
    """Return the models of a NeuralForecast, both untrained and trained; or the model itself."""
    if not _is_a(model, FORECASTER):
        return [model]
    return list({id(part): part for part in (*model.models_init, *model.models)}.values())


def _fitted(model: Any) -> Iterator[Any]:
    """Yield the best model that an Auto* model has found, if any."""
    if _is_a(model, AUTO) and isinstance(best := getattr(model, "model", None), nn.Module):
        yield best


def _supported_parts(model: Any, skip_unsupported: bool) -> list[Any]:
    parts = _parts(model)
    if not _is_a(model, FORECASTER):
        return parts
    supported, others = [], {}
    for part in parts:
        try:
            _network_class_of(part)
            supported.append(part)
        except TypeError as error:
            others[type(part).__name__] = str(error).removeprefix("accelerate: ")
    if others and not (skip_unsupported and supported):
        advice = "; skip_unsupported=True accelerates only the others" if supported else ""
        reasons = "".join(f"\n    {name}: {reason}" for name, reason in others.items())
        raise TypeError(
            f"accelerate: expected a NeuralForecast of {', '.join(_classes.__all__)} and Auto* "
            f"models of these, got {', '.join(others)}{advice}{reasons}"
        )
    return supported


def _class_of_models(model: Any) -> type[nn.Module]:
    """Return the class of `model`, or that of the models which an Auto* model constructs."""
    if not _is_a(model, AUTO):
        return type(model)
    constructor = model.cls_model
    return constructor.original if isinstance(constructor, AcceleratedClass) else constructor


def _replacements(model: Any, settings: Settings) -> list[Replacement]:
    cls = _class_of_models(model)
    name = _network_class_of(model).__name__
    _check_release()
    if _is_a(model, AUTO):
        config = _config_of_trials(model)
        _check_accelerator(_accelerator_of_trials(config))
        _check_precision(config.get("precision"))
        found = [Replacement(model, "cls_model", AcceleratedClass(cls, settings))]
        for best in _fitted(model):
            found += _replacements(best, settings)
        return found
    _check_accelerator(model.trainer_kwargs.get("accelerator"))
    _check_precision(model.trainer_kwargs.get("precision"))
    flash = settings.use_flash_attention
    setup = Setup(
        name,
        json.dumps(_options(model, name)),
        model.loss.outputsize_multiplier,
        name not in CHANGED_BY_FLASH if flash is None else flash,
        settings.flash_block_size,
        settings.gradient_checkpointing,
    )
    engine = Engine(setup)
    _check_names(model, engine)
    forward = AcceleratedForward(model, engine, settings)
    return [
        Replacement(model, "forward", forward),
        Replacement(model, "_fit_distributed", forward.fit_distributed),
    ]


def _network_class_of(model: Any) -> type[nn.Module]:
    """Return neuralforecast's class of `model`, or of the models that an Auto* model constructs."""
    base = _network_class(_class_of_models(model))
    own = vars(model).get("forward")
    if own is not None and not isinstance(own, AcceleratedForward):
        raise TypeError(
            f"accelerate: expected a {type(model).__name__} with the forward of its class, got an "
            "object with one of its own, which would be ignored"
        )
    return base


def _network_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return neuralforecast's class that `cls` is or is derived from."""
    base: Any
    for base in cls.__mro__:
        ours = base.__name__ in _classes.__all__
        if not (ours and base.__module__.startswith("neuralforecast.models.")):
            continue
        if cls.forward is not base.forward:
            raise TypeError(
                f"accelerate: expected {cls.__name__} to have the forward of "
                f"{base.__name__}, got one of its own, which would be ignored"
            )
        return base
    raise TypeError(
        "accelerate: expected a model object of neuralforecast, one of "
        f"{', '.join(_classes.__all__)}, an Auto* model of these, or a NeuralForecast, "
        f"got {cls.__module__}.{cls.__qualname__}"
    )


def _check_release() -> None:
    version = importlib.metadata.version("neuralforecast")
    if not version.startswith(SUPPORTED + "."):
        raise ValueError(
            f"accelerate: expected neuralforecast {SUPPORTED}, which the C++ models match, "
            f"got {version}; run\n    python3 -m pip install 'neuralforecast=={SUPPORTED}.*'"
        )


def _check_accelerator(accelerator: object) -> None:
    if (
        isinstance(accelerator, str)
        and accelerator not in ("cpu", "auto")
        or (accelerator == "auto" and torch.accelerator.is_available())
    ):
        raise ValueError(
            f"accelerate: expected a model that runs on the CPU, got accelerator={accelerator!r}; "
            'create it with accelerator="cpu", or keep the original on the GPU'
        )


def _check_precision(precision: object) -> None:
    if isinstance(precision, (str, int)) and str(precision) not in PRECISIONS:
        raise ValueError(
            "accelerate: expected a model with 32 or 64 bits, for which the C++ models have "
            f"kernels, got precision={precision!r}; leave it out, or keep the original"
        )


def _config_of_trials(model: Any) -> Mapping[str, Any]:
    """Return an Auto* model's configuration, in which values that are sampled are not a str."""
    config = model.config
    if not isinstance(config, Mapping):
        config = config(importlib.import_module(AUTO[0]).MockTrial())
    return config


def _accelerator_of_trials(config: Mapping[str, Any]) -> object:
    """Return the accelerator in an Auto* model's configuration; not a str where it is sampled."""
    accelerator = config.get("accelerator")
    if accelerator is None and torch.cuda.is_available():
        return "gpu"  # neuralforecast's default
    return accelerator


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
