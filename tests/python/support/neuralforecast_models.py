"""Small models of neuralforecast, and series to train them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import neuralforecast.models as nf_models
import numpy as np
import pandas as pd
import torch
from neuralforecast.losses.pytorch import DistributionLoss, MQLoss

HORIZON, PAST = 6, 24
QUIET = dict(
    h=HORIZON,
    input_size=PAST,
    accelerator="cpu",
    max_steps=4,
    windows_batch_size=8,
    # Adam would turn rounding errors of zero gradients into steps.
    optimizer=torch.optim.SGD,
    learning_rate=1e-2,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    logger=False,
)
# Without dropout, whose random masks differ, so that training matches, too.
MAKE: dict[str, Callable[..., Any]] = {
    "TFT": lambda **k: nf_models.TFT(
        hidden_size=16,
        dropout=0.0,
        loss=MQLoss(level=[80]),
        futr_exog_list=["known"],
        hist_exog_list=["seen"],
        stat_exog_list=["kind"],
        **k,
    ),
    "Informer": lambda **k: nf_models.Informer(
        hidden_size=16, dropout=0.0, futr_exog_list=["known"], **k
    ),
    "Autoformer": lambda **k: nf_models.Autoformer(
        hidden_size=16, dropout=0.0, futr_exog_list=["known"], **k
    ),
    "FEDformer": lambda **k: nf_models.FEDformer(
        hidden_size=16, dropout=0.0, modes=4, futr_exog_list=["known"], encoder_layers=3, **k
    ),
    "PatchTST": lambda **k: nf_models.PatchTST(
        hidden_size=16,
        n_heads=4,
        patch_len=8,
        stride=4,
        dropout=0.0,
        loss=DistributionLoss("Normal", return_params=True),
        scaler_type="revin",  # has parameters
        **k,
    ),
    "iTransformer": lambda **k: nf_models.iTransformer(
        n_series=2, hidden_size=16, d_ff=32, dropout=0.0, **k
    ),
}


def series(steps: int = 60) -> tuple[Any, Any, Any]:
    """Two series, their known future, and a static column."""
    rng = np.random.default_rng(0)
    dates = pd.date_range("2020-01-01", periods=steps + HORIZON, freq="D")
    frames = []
    for name in ("a", "b"):
        y = 5 + np.sin(np.arange(len(dates)) / 3) + 0.1 * rng.normal(size=len(dates))
        known, seen = rng.normal(size=(2, len(dates)))
        frames.append(pd.DataFrame(dict(unique_id=name, ds=dates, y=y, known=known, seen=seen)))
    past = pd.concat([frame[:steps] for frame in frames], ignore_index=True)
    future = pd.concat([frame[steps:] for frame in frames], ignore_index=True)
    static = pd.DataFrame(dict(unique_id=["a", "b"], kind=[0.0, 1.0]))
    return past, future[["unique_id", "ds", "known"]], static
