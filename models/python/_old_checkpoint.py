"""Reads `.ckpt` files of neuralforecast before 3.3, without running code of theirs.

They are pickles in torch's zip format. torch's own restricted reader, `weights_only=True`, rebuilds
tensors and plain containers. Every other class or function that a file names becomes a placeholder,
which only records its arguments and state; losses and numbers of NumPy are recognized by name.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from flash_attention.models import _classes
from flash_attention.models._columns import is_dense
from torch import Tensor

ZIP = b"PK\x03\x04"
"""The first bytes of torch's files. A safetensors file would need a header of 67 MB for them."""

LOSSES = "neuralforecast.losses.pytorch."

DISTINCTIVE = {
    "FEDformer": {"mode_select", "modes"},
    "Autoformer": {"MovingAvg_window", "factor"},
    "Informer": {"distil", "factor"},
    "TFT": {"tgt_size"},
    "PatchTST": {"patch_len", "revin"},
    "iTransformer": {"d_layers", "use_norm"},
}
"""Hyperparameters that only one class has; the files do not name their class."""

ADDED_LATER: Mapping[str, Mapping[str, Any]] = {
    "TFT": {
        "grn_activation": "ELU",
        "n_rnn_layers": 1,
        "rnn_type": "lstm",
        "one_rnn_initial_state": False,
    }
}
"""Options that some releases lack, with the values that these compute with."""

USED = {"loss", "scaler_type", "random_seed", "batch_size", "valid_batch_size"}
"""Hyperparameters beside the options of the network that forecasts depend on."""

MOST_VALUES, DEEPEST = 100_000, 8
"""In one hyperparameter. A small file can describe a list of lists with far more values."""

NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "b1": "?"}
"""NumPy's names of types, and those of `struct`."""


class Placeholder:
    """Stands for an object that a file describes, and does nothing."""

    path = ""
    """Module and name in the file."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Placeholder:
        made = object.__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *_: Any) -> None:
        """Accept the arguments that `__new__` has recorded."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Unknown(Exception):
    """A value without a counterpart in JSON."""


def is_torch_file(path: str) -> bool:
    """Whether `path` is a file that torch.save has written."""
    if not os.path.isfile(path):  # a pipe would block; the C++ side has messages for these
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(ZIP)) == ZIP
    except OSError:
        return False


def read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata as in a safetensors file of neuralforecast 3.3.

    Raises:
        ValueError: it is not a checkpoint of one of the six models, or something that forecasts
            depend on cannot be read.
    """
    contents = _load(path)
    if not isinstance(contents, Mapping) or not {"hyper_parameters", "state_dict"} <= set(contents):
        raise ValueError(
            f"Forecaster: expected a checkpoint of neuralforecast with hyper_parameters and "
            f"state_dict in {path}, got something else"
        )
    state, given = contents["state_dict"], contents["hyper_parameters"]
    if not isinstance(state, Mapping) or not isinstance(given, Mapping):
        raise ValueError(f"Forecaster: expected dicts as hyper_parameters and state_dict in {path}")
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            continue
        if not is_dense(tensor):
            raise ValueError(
                f"Forecaster: expected dense tensors in {path}, got {name} of {tensor.layout} on "
                f"{tensor.device.type}"
            )
        tensors[name] = tensor.detach()
    model_class = _model_class(path, {name for name in given if isinstance(name, str)})
    hyper_parameters = dict(ADDED_LATER.get(model_class, {}))
    needed = USED | inspect.signature(getattr(_classes, model_class)).parameters.keys()
    for name, value in given.items():
        try:
            if isinstance(name, str):
                hyper_parameters[name] = _to_json(value, iter(range(MOST_VALUES)))
        except Unknown:
            if name not in needed:
                continue  # an optimizer, a callback: they concern training
            kind = value.path if isinstance(value, Placeholder) else type(value).__name__
            raise ValueError(
                f"Forecaster: expected the hyperparameter {name} in {path} as numbers, text or "
                f"a loss of neuralforecast, got {kind} with values that cannot be read"
            ) from None
    metadata = {"model_class": model_class, "hyper_parameters": json.dumps(hyper_parameters)}
    return tensors, metadata


def _load(path: str) -> Any:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # The dict of hyperparameters; the reader fills only dicts that it knows.
        known = {name: OrderedDict for name in named if name.endswith(".AttributeDict")}
        others = {name: type(name, (Placeholder,), {"path": name}) for name in named}
        stand_ins: list[Any] = [(kind, name) for name, kind in (others | known).items()]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes of torch's reader
        raise ValueError(
            f"Forecaster: expected a checkpoint of neuralforecast, got {path}, which cannot be "
            f"read: {_reason(error)}"
        ) from None


def _reason(error: BaseException) -> str:
    """What the restricted reader says, without torch's advice to use the unrestricted one."""
    if isinstance(error, pickle.UnpicklingError) and error.__context__ is not None:
        error = error.__context__
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return type(error).__name__ if "weights_only" in reason or "allowlist" in reason else reason


def _model_class(path: str, hyper_parameters: set[str]) -> str:
    for name, keys in DISTINCTIVE.items():
        if keys <= hyper_parameters:
            return name
    raise ValueError(
        f"Forecaster: expected a checkpoint of {', '.join(sorted(DISTINCTIVE))} in {path}, got the "
        f"hyperparameters {', '.join(sorted(hyper_parameters))}"
    )


def _to_json(value: Any, left: Iterator[int], depth: int = 0) -> Any:
    """`value` as neuralforecast 3.3 writes it into its files; `left` counts values down."""
    if next(left, None) is None or depth > DEEPEST:
        raise Unknown
    if isinstance(value, Placeholder):
        if value.path.startswith(LOSSES):
            return _loss(value, left)
        value = _number(value)
    if isinstance(value, (list, tuple)):
        return [_to_json(element, left, depth + 1) for element in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    if finite and (value is None or isinstance(value, (bool, int, float, str))):
        return value
    raise Unknown


def _number(value: Placeholder) -> Any:
    """A number or text of NumPy: scalar(dtype, bytes)."""
    if not value.path.endswith(".multiarray.scalar") or len(value.args) != 2:
        raise Unknown
    dtype, data = value.args
    if not isinstance(dtype, Placeholder) or not dtype.args or not isinstance(data, bytes):
        raise Unknown
    name = dtype.args[0]
    if not isinstance(name, str):
        raise Unknown
    try:
        if name.startswith("U"):
            return data.decode("utf-32-le").rstrip("\0")
        return struct.unpack("<" + NUMBERS[name], data)[0]
    except (KeyError, struct.error, UnicodeDecodeError) as error:
        raise Unknown from error


def _loss(loss: Placeholder, left: Iterator[int]) -> dict[str, Any]:
    """The loss, by arguments of its constructor that its attributes reveal."""
    attributes = loss.state if isinstance(loss.state, Mapping) else {}
    arguments: dict[str, Any] = {}
    for name in ("q", "delta", "distribution", "return_params"):
        if attributes.get(name) is not None:
            arguments[name] = _to_json(attributes[name], left)
    parameters = attributes.get("_parameters")
    quantiles = parameters.get("quantiles") if isinstance(parameters, Mapping) else None
    if isinstance(quantiles, Tensor):
        if not is_dense(quantiles):
            raise Unknown
        arguments["quantiles"] = _to_json(quantiles.tolist(), left)
    described = {"__nf__": "loss", "cls": loss.path.removeprefix(LOSSES), "args": arguments}
    if isinstance(names := attributes.get("output_names"), list):
        described["state"] = {"output_names": _to_json(names, left)}
    return described
