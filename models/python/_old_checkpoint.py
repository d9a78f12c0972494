"""Reads `.ckpt` files of neuralforecast before 3.3, without running code of theirs.

They are pickles in torch's zip format. torch's own restricted reader, `weights_only=True`, rebuilds
tensors and plain containers. Every other class or function that a file names becomes a placeholder,
which only records its arguments and state; losses and numbers of NumPy are recognized by name.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ZIP = b"PK\x03\x04"
"""The first bytes of torch's files. A safetensors file would need a header of 67 MB for them."""

LOSSES = "neuralforecast.losses.pytorch."

DISTINCTIVE = {
    "FEDformer": {"mode_select", "modes"},
    "Autoformer": {"MovingAvg_window", "factor"},
    "Informer": {"distil", "factor"},
    "TFT": {"grn_activation"},
    "PatchTST": {"patch_len", "revin"},
    "iTransformer": {"use_norm", "e_layers", "d_ff"},
}
"""Hyperparameters that only one class has; the files do not name their class."""

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
    try:
        with open(path, "rb") as file:
            return file.read(len(ZIP)) == ZIP
    except OSError:  # a folder, or nothing, for which the C++ side has a message
        return False


def read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata as in a safetensors file of neuralforecast 3.3.

    Raises:
        ValueError: it is not a checkpoint of one of the six models.
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
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    hyper_parameters = {}
    for name, value in given.items():
        try:
            hyper_parameters[str(name)] = _to_json(value)
        except Unknown:
            continue  # an optimizer, a callback: they concern training
    metadata = {
        "model_class": _model_class(path, hyper_parameters),
        "hyper_parameters": json.dumps(hyper_parameters),
    }
    return {str(name): tensor.detach() for name, tensor in tensors.items()}, metadata


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
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"Forecaster: expected a checkpoint of neuralforecast, got {path}, which cannot be "
            f"read: {reason}"
        ) from error


def _model_class(path: str, hyper_parameters: Mapping[str, Any]) -> str:
    for name, keys in DISTINCTIVE.items():
        if keys <= hyper_parameters.keys():
            return name
    raise ValueError(
        f"Forecaster: expected a checkpoint of {', '.join(sorted(DISTINCTIVE))} in {path}, got the "
        f"hyperparameters {', '.join(sorted(hyper_parameters))}"
    )


def _to_json(value: Any) -> Any:
    """`value` as neuralforecast 3.3 writes it into its files."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_json(element) for element in value]
    if isinstance(value, Placeholder):
        if value.path.startswith(LOSSES):
            return _loss(value)
        return _number(value)
    raise Unknown


def _number(value: Placeholder) -> Any:
    """A number or text of NumPy: scalar(dtype, bytes)."""
    if not value.path.endswith(".multiarray.scalar") or len(value.args) != 2:
        raise Unknown
    dtype, data = value.args
    if not isinstance(dtype, Placeholder) or not dtype.args or not isinstance(data, bytes):
        raise Unknown
    name = str(dtype.args[0])
    try:
        if name.startswith("U"):
            return data.decode("utf-32-le").rstrip("\0")
        return struct.unpack("<" + NUMBERS[name], data)[0]
    except (KeyError, struct.error, UnicodeDecodeError) as error:
        raise Unknown from error


def _loss(loss: Placeholder) -> dict[str, Any]:
    """The loss, by arguments of its constructor that its attributes reveal."""
    attributes = loss.state if isinstance(loss.state, Mapping) else {}
    arguments: dict[str, Any] = {}
    for name in ("q", "delta", "distribution", "return_params"):
        if isinstance(value := attributes.get(name), (bool, int, float, str)):
            arguments[name] = value
    parameters = attributes.get("_parameters")
    quantiles = parameters.get("quantiles") if isinstance(parameters, Mapping) else None
    if isinstance(quantiles, Tensor):
        arguments["quantiles"] = quantiles.tolist()
    described = {"__nf__": "loss", "cls": loss.path.removeprefix(LOSSES), "args": arguments}
    if isinstance(names := attributes.get("output_names"), list):
        described["state"] = {"output_names": [_to_json(name) for name in names]}
    return described
