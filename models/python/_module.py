"""The base class of the six models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from flash_attention.models._engine import WINDOWS, Engine, Setup
from torch import Tensor, nn

SETTINGS = ("output_size", "use_flash_attention", "flash_block_size", "gradient_checkpointing")
"""The arguments that are not options of neuralforecast's networks."""

AROUND_THE_NETWORK = ("loss.", "valid_loss.", "scaler.")
"""Prefixes of neuralforecast's losses and window scaler in its state_dict."""


class Node(nn.Module):
    """A submodule that only holds tensors; the root module computes with them.

    Its own forward is never called, so hooks on it do not run, and its `training` has no effect.
    """

    def __getitem__(self, index: int | str) -> nn.Module:
        """`layers[0]`, as in neuralforecast's lists of layers."""
        child = self._modules.get(str(index))
        if child is None:
            raise IndexError(f"expected one of {list(self._modules)}, got {index!r}")
        return child

    def forward(self, *_: object) -> Tensor:
        """Raise NotImplementedError."""
        raise NotImplementedError("flash_attention.models: call the whole model, not a part of it")

    def extra_repr(self) -> str:
        """Return names and shapes of the tensors, for `print(model)`."""
        own = {**self._parameters, **self._buffers}
        return ", ".join(
            f"{name} {list(tensor.shape)}" for name, tensor in own.items() if tensor is not None
        )


class Linear(Node, nn.Linear):
    """A Node with the weight of a linear layer, and as such one for `parallelize_module`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)  # without weights of its own
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)


def _linear_layers(
    tensors: Sequence[tuple[list[str], Tensor, bool, bool]],
) -> dict[str, tuple[int, int]]:
    """Input and output width of each linear layer, by the name of its module."""
    return {
        name.removesuffix(".weight"): (value.size(1), value.size(0))
        for names, value, is_parameter, _ in tensors
        for name in names
        if is_parameter and name.endswith(".weight") and value.dim() == 2
    }


class ForecastModel(nn.Module):
    """A forecasting transformer that computes in C++ on ordinary `torch.nn.Parameter`s.

    It is a `torch.nn.Module` like any other: `parameters`, `state_dict`, `load_state_dict`,
    `train`, `eval`, `to`, `double`, copying, pickling, `torch.optim` and autograd work as usual.
    The names of parameters and buffers are neuralforecast's. It computes on the CPU, in float32 or
    float64.

    Parameters may be DTensors, as `parallelize_module` makes them: every forward gathers them, and
    gradients go back to the shards. Windows that are DTensors, sharded along the batch, are divided
    among the processes.
    """

    node_types: ClassVar[Mapping[str, type[Node]]] = {}
    """Submodules with a class other than Node, by name."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """`arguments` are those of the derived class's constructor."""
        super().__init__()
        given = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in arguments.items()
            if name not in ("self", "__class__") and value is not None
        }
        settings: dict[str, Any] = {name: given.pop(name) for name in SETTINGS}
        self._check(given, settings)
        setup = Setup(type(self).model_class(), json.dumps(given), **settings)
        native = setup.build()
        self._engine = Engine(setup, native)
        self._metadata: dict[str, str] = {}  # of the file that the model was loaded from
        self._others: dict[str, Tensor] = {}  # its tensors that are not weights
        with torch.inference_mode(False):  # a model built in inference mode must be trainable, too
            tensors = native.tensors()
            linear = _linear_layers(tensors)
            for names, value, is_parameter, requires_grad in tensors:
                tensor = nn.Parameter(value, requires_grad) if is_parameter else value
                self._register(names, tensor, linear)

    @classmethod
    def model_class(cls) -> str:
        """Return neuralforecast's name of the class, also for classes derived from the six."""
        return next(c.__name__ for c in cls.__mro__ if c.__bases__ == (ForecastModel,))

    @property
    def options(self) -> dict[str, Any]:
        """All options of the network, including defaults, under neuralforecast's names."""
        return json.loads(self._engine.native.options())

    @property
    def output_size(self) -> int:
        """Outputs per step and series: neuralforecast's `loss.outputsize_multiplier`."""
        return self._engine.setup.output_size

    def forward(self, windows_batch: Mapping[str, Tensor | None] | Tensor) -> Tensor:
        """Return neuralforecast's raw output, before the loss maps it to a forecast.

        Args:
            windows_batch: `insample_y`, and if the model uses them `futr_exog`, `hist_exog` and
                `stat_exog`, with the shapes in the class's documentation. None is the same as a
                missing key. `insample_mask` is accepted and ignored, as in neuralforecast. A
                single tensor is `insample_y`.

        Returns:
            [B, h, output_size]; iTransformer [B, h, output_size * n_series].
            A DTensor if a window is one, with the same shards of the batch.

        Raises:
            ValueError: an unknown key, or a tensor that is missing, unexpected, of the wrong shape
                or dtype, or not on the CPU; DTensors on several meshes.
            NotImplementedError: a parameter has a forward-mode tangent or is transformed by
                `torch.func`.
        """
        if isinstance(windows_batch, Tensor):
            windows_batch = {"insample_y": windows_batch}
        unknown = set(windows_batch) - set(WINDOWS)
        if unknown:
            raise ValueError(
                f"{self.model_class()}: expected windows_batch with the keys "
                f"{', '.join(WINDOWS)}, got {', '.join(sorted(map(repr, unknown)))}"
            )
        return self._engine.forward(self, windows_batch)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and options in the safetensors format of neuralforecast's `save`.

        neuralforecast's `load` reads the file. If the model was loaded from a file of
        neuralforecast, the new file keeps its loss, scaler and training options. Otherwise the loss
        is MAE, which neuralforecast can load only with an `output_size` of 1.

        Raises:
            ValueError: the file cannot be written.
        """
        self._engine.save(self, os.fspath(path), self._metadata, self._others)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        use_flash_attention: bool = False,
        flash_block_size: int = 64,
        gradient_checkpointing: bool = False,
    ) -> Self:
        """Load a model from a file of `save`, of neuralforecast's `save`, or of flash_train.

        The model is in eval mode.

        Raises:
            ValueError: the file is broken, needs an option that this network lacks, or holds a
                model of another class (`flash_attention.models.load` loads any).
        """
        model_class, options, output_size, weights, metadata, others = (
            torch.ops.flash_models.read_model(os.fspath(path))
        )
        if model_class != cls.model_class():
            raise ValueError(
                f"{cls.model_class()}.from_checkpoint: expected a file of {cls.model_class()}, got "
                f"{model_class} in {os.fspath(path)}; flash_attention.models.load takes any"
            )
        with torch.random.fork_rng(devices=[]):
            model = cls(  # type: ignore[call-arg]  # the constructor of one of the six models
                **json.loads(options),
                output_size=output_size,
                use_flash_attention=use_flash_attention,
                flash_block_size=flash_block_size,
                gradient_checkpointing=gradient_checkpointing,
            )
        model.load_state_dict(weights)
        model._metadata, model._others = metadata, others
        return model.eval()

    def extra_repr(self) -> str:
        """Return the constructor's arguments, for `print(model)`."""
        setup = self._engine.setup
        given = json.loads(setup.options)
        given |= {name: getattr(setup, name) for name in SETTINGS}
        return ", ".join(f"{name}={value!r}" for name, value in given.items())

    def _check(self, options: dict[str, Any], settings: dict[str, Any]) -> None:
        """Check what the C++ side would report in terms of C++."""
        name = type(self).model_class()
        for key, value in options.items():
            names = isinstance(value, list) and all(isinstance(item, str) for item in value)
            if key.endswith("_exog_list") and not names:
                raise ValueError(f"{name}: expected {key} as a list of column names, got {value!r}")
        for key, value in settings.items():
            expected = int if key in ("output_size", "flash_block_size") else bool
            if type(value) is not expected:
                raise ValueError(
                    f"{name}: expected {key} as {expected.__name__}, got {value!r} of type "
                    f"{type(value).__name__}"
                )

    def _register(
        self, names: list[str], tensor: Tensor, linear: Mapping[str, tuple[int, int]]
    ) -> None:
        """Register a tensor under each of its names, creating submodules as needed."""
        for name in names:
            *path, attribute = name.split(".")
            owner: nn.Module = self
            for depth, key in enumerate(path, 1):
                if key not in owner._modules:
                    owner.add_module(key, self._node(".".join(path[:depth]), linear))
                owner = owner.get_submodule(key)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(attribute, tensor)
            else:
                owner.register_buffer(attribute, tensor)

    def _node(self, path: str, linear: Mapping[str, tuple[int, int]]) -> Node:
        if path in linear:
            return Linear(*linear[path])
        return self.node_types.get(path, Node)()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # A state_dict of neuralforecast also has tensors of losses and scaler.
        around = tuple(prefix + name for name in AROUND_THE_NETWORK)
        for key in [key for key in state_dict if key.startswith(around)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # torch's double() skips complex tensors, and to(float64) drops their imaginary parts. Here
        # complex64 goes with float32, and complex128 with float64.
        def both_parts(tensor: Tensor) -> Tensor:
            if not tensor.is_complex():
                return fn(tensor)
            return torch.view_as_complex(fn(torch.view_as_real(tensor)))

        return super()._apply(both_parts, recurse)
