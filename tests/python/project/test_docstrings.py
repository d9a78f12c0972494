"""Runs the examples in the package's docstrings."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import flash_attention
import pytest
import torch
from flash_attention import distributed, functional, models
from flash_attention.flash_attn_interface import dense, installation, kvcache, varlen
from flash_attention.flex import attention as flex
from flash_attention.models import _forecaster

pytestmark = pytest.mark.once


MODULES = [
    flash_attention,
    functional,
    models,
    _forecaster,
    dense,
    varlen,
    kvcache,
    installation,
    flex,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_docstring_examples_pass(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    torch.manual_seed(0)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(flash_attention.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert getattr(flash_attention, name).__doc__


@pytest.mark.parametrize("name", distributed.__all__)
def test_every_public_distributed_name_is_documented(name: str) -> None:
    assert getattr(distributed, name).__doc__


@pytest.mark.parametrize("name", flash_attention.flash_attn_interface.__all__)
def test_every_public_name_of_flash_attn_is_documented(name: str) -> None:
    assert getattr(flash_attention.flash_attn_interface, name).__doc__


@pytest.mark.parametrize("name", models.__all__)
def test_every_public_model_name_is_documented(name: str) -> None:
    documentation = getattr(models, name).__doc__
    assert documentation
    assert "SETTINGS" not in documentation  # a placeholder that must have been replaced
