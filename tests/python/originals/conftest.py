"""What the tests against neuralforecast share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Silences Lightning's report about the machine in every fit."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    caplog.set_level(logging.ERROR)
