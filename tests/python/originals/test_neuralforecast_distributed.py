"""accelerate in trainings on several processes: the losses of each are the original's."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flash_attention.models import accelerate
from neuralforecast import DistributedConfig
from ray import cloudpickle

from project.test_docs import ROOT
from support import neuralforecast_processes
from support.neuralforecast_models import MAKE, QUIET

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

# In neuralforecast's TFT and FEDformer some weights have no effect on the output; plain "ddp"
# raises an error for both, accelerated or not.
STRATEGIES = {name: "ddp" for name in MAKE} | {
    name: "ddp_find_unused_parameters_true" for name in ("FEDformer", "TFT")
}

Fit = tuple[str, str, bool]


def train_on_two_processes(folder: Path, fits: list[Fit]) -> list[dict[Fit, dict[str, Any]]]:
    """The results of each process that does not end with `fit`."""
    paths = [str(ROOT), str(ROOT / "tests" / "python"), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, neuralforecast_processes.__file__, folder, json.dumps(fits)],
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
        # A name of the machine that does not resolve must not keep Gloo from finding an address.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo"},
    )
    processes = [torch.load(path) for path in sorted(folder.iterdir())]
    return [dict(zip(fits, results, strict=True)) for results in processes]


def assert_the_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares a training of the accelerated model with one of the original."""
    assert (found["forward"], expected["forward"]) == ("AcceleratedForward", "method")
    # float32 after a few steps, as in one process.
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-4)
    for key, parameter in expected["parameters"].items():
        torch.testing.assert_close(
            found["parameters"][key], parameter, rtol=1e-4, atol=1e-5, msg=key
        )


def test_losses_on_two_processes_match_the_original(tmp_path: Path) -> None:
    fits = [(name, STRATEGIES[name], fast) for name in STRATEGIES for fast in (False, True)]
    processes = train_on_two_processes(tmp_path, fits)
    assert len(processes) == 2
    for results in processes:
        for name, strategy in STRATEGIES.items():
            assert len(results[name, strategy, True]["losses"]) == QUIET["max_steps"]
            assert_the_same(results[name, strategy, True], results[name, strategy, False])
    for one, other in zip(*map(dict.values, processes), strict=True):
        assert one["losses"] != other["losses"], "each process has other windows"
        for key, parameter in one["parameters"].items():
            assert torch.equal(other["parameters"][key], parameter), "and the same gradients"


def test_forked_and_spawned_processes_match_the_original(tmp_path: Path) -> None:
    original = ("PatchTST", "ddp_notebook", False)
    forked, spawned = ("PatchTST", "ddp_notebook", True), ("PatchTST", "ddp_spawn", True)
    (results,) = train_on_two_processes(tmp_path, [original, forked, spawned])
    assert_the_same(results[forked], results[original])
    assert_the_same(results[spawned], results[original])


class TorchDistributor:
    """Takes the place of Spark's: constructs the model that it would train in a process."""

    def __init__(self, **options: Any) -> None:
        assert options == {"num_processes": 2, "local_mode": True, "use_gpu": False}

    def run(self, train: Any, **arguments: Any) -> Any:
        sent = pickle.loads(cloudpickle.dumps((arguments["model_cls"], arguments["model_params"])))
        return sent[0](**sent[1])


def test_processes_of_spark_construct_accelerated_models(monkeypatch: pytest.MonkeyPatch) -> None:
    distributor = ModuleType("pyspark.ml.torch.distributor")
    distributor.TorchDistributor = TorchDistributor  # type: ignore[attr-defined]
    for name in ("pyspark", "pyspark.ml", "pyspark.ml.torch"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyspark.ml.torch.distributor", distributor)
    config = DistributedConfig(partitions_path="", num_nodes=1, devices=2)
    model = accelerate(MAKE["PatchTST"](**QUIET), flash_block_size=32)
    arguments = (config, None, 0, 0)  # no data module, no validation
    for trained in (model._fit_distributed(*arguments), pickle.loads(pickle.dumps(model))):
        assert type(trained) is type(model)
        assert trained.forward.model is trained
        assert trained.forward.engine.setup.flash_block_size == 32
        assert trained._fit_distributed(*arguments).forward.engine.setup.flash_block_size == 32
