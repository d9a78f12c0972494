"""The Python constructors against the options of the C++ models."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import pytest
import torch
from flash_attention import models
from flash_attention.models import _classes
from flash_attention.models._module import SETTINGS

pytestmark = pytest.mark.once

REQUIRED = {"h": 4, "input_size": 24, "n_series": 3}
"""Values for the options without a default."""

COMMON = {
    "output_size": 1,
    "use_flash_attention": False,
    "flash_block_size": 64,
    "gradient_checkpointing": False,
}

WRONG = {int: 1.5, float: "1", bool: 1, str: 7, Sequence[str] | None: [1]}
"""For each annotation a value that the C++ side must reject."""


def native_options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a C++ model that is built from `given`, with C++'s defaults for the rest."""
    native = torch.classes.flash_models.Model(name, json.dumps(given), *COMMON.values())
    return json.loads(native.options())


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(models, name)).parameters


def required(name: str) -> dict[str, int]:
    return {option: value for option, value in REQUIRED.items() if option in parameters(name)}


def test_python_has_a_class_for_each_model_of_the_library() -> None:
    with pytest.raises(ValueError, match="expected a model class among") as raised:
        native_options("LSTM", {})
    listed = re.search(r"among (.*), got", str(raised.value)).group(1).split(", ")
    assert sorted(_classes.__all__) == sorted(listed)


@pytest.mark.parametrize("name", _classes.__all__)
def test_defaults_are_those_of_the_library(name: str) -> None:
    native = native_options(name, required(name))
    own = {
        option: parameter.default
        for option, parameter in parameters(name).items()
        if option not in SETTINGS
    }
    own |= required(name)
    if name == "FEDformer":  # Python's None stands for the lists that the library draws
        assert own.pop("fourier_index") is None
        del native["fourier_index"]
    assert own == native


@pytest.mark.parametrize("name", _classes.__all__)
def test_settings_are_the_same_in_all_classes(name: str) -> None:
    found = list(parameters(name).values())[-len(SETTINGS) :]
    assert {parameter.name: parameter.default for parameter in found} == COMMON
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in found)


@pytest.mark.parametrize("name", _classes.__all__)
def test_annotations_name_the_types_that_the_library_takes(name: str) -> None:
    hints = get_type_hints(getattr(models, name).__init__)
    for option in parameters(name):
        if option in SETTINGS or option == "fourier_index":
            continue
        value = WRONG[hints[option]]
        with pytest.raises(ValueError, match=f"^{name}: expected option {option} as "):
            native_options(name, required(name) | {option: value})


@pytest.mark.parametrize("name", _classes.__all__)
def test_positional_arguments_come_first_and_in_one_order(name: str) -> None:
    """h, input_size, then n_series or the columns: as in neuralforecast."""
    positional = [
        option
        for option, parameter in parameters(name).items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    order = ("h", "input_size", "n_series", "tgt_size", "stat_exog_list", "hist_exog_list")
    expected = [option for option in (*order, "futr_exog_list") if option in positional]
    assert positional[: len(expected)] == expected
