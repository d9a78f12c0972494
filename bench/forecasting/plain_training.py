"""The training loop that a PyTorch user writes, with which flash_train is compared."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.forecasting.etth1_data import Parts, Windows
from bench.forecasting.etth1_settings import Settings


@dataclass(frozen=True)
class Errors:
    """Means over all values of all windows, on the standardized scale."""

    mae: float
    mse: float


def errors(forecast: Callable[[Tensor], Tensor], windows: Windows, batch_size: int) -> Errors:
    """Errors of `forecast`, which takes inputs [B, L, N], over all windows."""
    absolute = squared = values = 0.0
    for indices in torch.arange(len(windows)).split(batch_size):
        past, future = windows.batch(indices)
        with torch.no_grad():
            difference = forecast(past).double() - future.double()
        absolute += difference.abs().sum().item()
        squared += difference.square().sum().item()
        values += future.numel()
    return Errors(absolute / values, squared / values)


def naive_errors(windows: Windows, batch_size: int) -> Errors:
    """Errors of the naive forecast, which repeats the last value."""
    return errors(lambda past: past[:, -1:], windows, batch_size)


def forecast(model: nn.Module, past: Tensor) -> Tensor:
    """neuralforecast's `forward`, without exogenous columns."""
    windows = {"insample_y": past, "futr_exog": None, "hist_exog": None, "stat_exog": None}
    output: Tensor = model.forward(windows)
    return output


def model_errors(model: nn.Module, windows: Windows, batch_size: int) -> Errors:
    """Errors of a model without dropout."""
    model.eval()
    return errors(lambda past: forecast(model, past), windows, batch_size)


class PlainTraining:
    """Mean squared error and torch.optim.Adam, one epoch per call; keeps the best epoch's weights.

    The seed determines the order of the windows as it does in flash_train, so that both see the
    same batches, and the dropout masks.
    """

    def __init__(self, model: nn.Module, settings: Settings, parts: Parts, seed: int) -> None:
        self.model = model
        self.settings = settings
        self.parts = parts
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self.order = torch.Generator().manual_seed(seed)
        self.train_losses: list[float] = []
        self.validation: list[Errors] = []
        self.best: dict[str, Tensor] = {}
        torch.manual_seed(seed)

    @property
    def best_epoch(self) -> int:
        """The epoch with the smallest squared error on the validation part, counted from 1."""
        found = [errors.mse for errors in self.validation]
        return found.index(min(found)) + 1

    def epoch(self) -> None:
        """Trains on every window once, then validates."""
        self.train_losses.append(self._train())
        batch_size = self.settings.batch_size
        self.validation.append(model_errors(self.model, self.parts.validation, batch_size))
        if self.best_epoch == len(self.validation):
            self.best = {name: t.clone() for name, t in self.model.state_dict().items()}

    def test(self) -> Errors:
        """Errors of the best epoch's weights, which the model has afterwards."""
        self.model.load_state_dict(self.best)
        return model_errors(self.model, self.parts.test, self.settings.batch_size)

    def _train(self) -> float:
        """One epoch; returns the mean loss over the windows."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_of(len(self.train_losses) + 1)
        self.model.train()
        total = 0.0
        order = torch.randperm(len(self.parts.train), generator=self.order)
        for indices in order.split(self.settings.batch_size):
            past, future = self.parts.train.batch(indices)
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(forecast(self.model, past), future)
            total += loss.item() * len(indices)
            loss.backward()
            self.optimizer.step()
        if not math.isfinite(total):
            sys.exit(
                f"bench/forecasting/etth1.py: {self.settings.model} of neuralforecast: expected a "
                f"finite loss, got {total} in epoch {len(self.train_losses) + 1}"
            )
        return total / len(order)
