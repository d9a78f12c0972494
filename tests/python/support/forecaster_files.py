"""Model files with random weights for the tests of Forecaster, and series for them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from flash_attention.models import TFT, PatchTST

H, PAST = 4, 12


def save_patchtst(folder: Path) -> Path:
    """A PatchTST, which takes no exogenous columns."""
    torch.manual_seed(0)
    path = folder / "patchtst.safetensors"
    model = PatchTST(h=H, input_size=PAST, hidden_size=8, n_heads=2, patch_len=4, stride=2)
    model.save(path)
    return path


def save_tft(folder: Path) -> Path:
    """A TFT, which takes columns of all kinds."""
    torch.manual_seed(0)
    path = folder / "tft.safetensors"
    model = TFT(
        h=H,
        input_size=PAST,
        hidden_size=8,
        futr_exog_list=["known"],
        hist_exog_list=["seen"],
        stat_exog_list=["kind"],
    )
    model.save(path)
    return path


def wave(rows: int, offset: float = 5.0) -> torch.Tensor:
    return offset + torch.sin(0.7 * torch.arange(rows, dtype=torch.float64))


def table(rows: int = 20, names: tuple[str, ...] = ("b", "a")) -> tuple[dict, dict, dict]:
    """Series whose rows are in no order, their future, and a static column."""
    past: dict[str, list] = {key: [] for key in ("unique_id", "ds", "y", "known", "seen")}
    future: dict[str, list] = {key: [] for key in ("unique_id", "ds", "known")}
    for number, name in enumerate(names):
        for row in reversed(range(rows + H)):
            known = math.cos(row + number)
            into = past if row < rows else future
            values = dict(y=math.sin(0.7 * row) + number, seen=float(row % 3), known=known)
            for key in into:
                into[key].append({"unique_id": name, "ds": row}.get(key, values.get(key)))
    static = {"unique_id": list(names), "kind": [float(len(names) - i) for i in range(len(names))]}
    return past, future, static
