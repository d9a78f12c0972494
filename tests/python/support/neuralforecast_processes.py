"""Trains models of neuralforecast on two processes, as Lightning starts them; a program.

It trains each model that its second argument lists in JSON, as [name, strategy, whether it is
accelerated]. Each process that survives writes a list of results to <folder>/<rank>.pt.

    python tests/python/support/neuralforecast_processes.py FOLDER '[["PatchTST", "ddp", true]]'
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from flash_attention.models import accelerate
from neuralforecast import NeuralForecast

from support.neuralforecast_models import MAKE, QUIET, series


def train(name: str, strategy: str, fast: bool) -> dict[str, Any]:
    """Losses and parameters of this process after a fit on two."""
    past, _, static = series()
    model = MAKE[name](**QUIET, strategy=strategy, devices=2)
    forecaster = NeuralForecast(models=[accelerate(model) if fast else model], freq="D")
    forecaster.fit(past, static_df=static)
    trained = forecaster.models[0]
    return {
        "forward": type(trained.forward).__name__,
        "losses": [loss for _, loss in trained.train_trajectories],
        "parameters": {key: p.detach() for key, p in trained.named_parameters()},
    }


def main(folder: str, fits: str) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = [train(*fit) for fit in json.loads(fits)]
    # Where Lightning has started the program again, it has set the rank.
    torch.save(results, Path(folder) / f"{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
