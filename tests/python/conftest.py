"""Set-up of all tests: the compiled package imports, and torch's global state stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import flash_attention  # noqa: F401  (registers torch.ops.flash before any test module is collected)
import model_fixtures
import pytest
import torch


@pytest.fixture(autouse=True)
def unchanged_global_state() -> Iterator[None]:
    """Seeds every test alike, and checks what a test or the operator could leave behind."""
    torch.manual_seed(0)
    before = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    yield
    after = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    assert after == before, "a test changed the number of threads, the default dtype or grad mode"


@pytest.fixture(params=sorted(model_fixtures.TYPICAL))
def typical(request: pytest.FixtureRequest) -> model_fixtures.Fixture:
    """One recorded case of each model."""
    return model_fixtures.load(model_fixtures.TYPICAL[request.param])
