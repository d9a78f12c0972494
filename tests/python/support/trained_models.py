"""Trainings of the models by torch's wrappers, on one process of a group."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import flash_attention.models
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

ROWS, STEPS = 8, 3
SIZES = {"h": 4, "input_size": 24}
SMALL = {
    "PatchTST": {"hidden_size": 8, "linear_hidden_size": 16, "n_heads": 2, "encoder_layers": 1}
    | {"patch_len": 6, "stride": 3, "dropout": 0.0, "fc_dropout": 0.0, "head_dropout": 0.0},
    "TFT": {"hidden_size": 8, "n_head": 2, "dropout": 0.0, "attn_dropout": 0.0},
    "Informer": {"hidden_size": 8, "n_head": 2, "factor": 10, "dropout": 0.0, "distil": False},
    "Autoformer": {"hidden_size": 8, "n_head": 2, "dropout": 0.0},
    "FEDformer": {"hidden_size": 8, "n_head": 8, "dropout": 0.0},
    "iTransformer": {"hidden_size": 8, "n_heads": 2, "d_ff": 16, "n_series": 2, "dropout": 0.0},
}


def train(name: str, wrap: Callable[[nn.Module], nn.Module], begin: int, end: int) -> list[float]:
    """The losses of this process's windows begin … end - 1, after each step of SGD."""
    torch.manual_seed(0)
    model = wrap(getattr(flash_attention.models, name)(**SIZES, **SMALL[name]))
    series = SMALL[name].get("n_series", 1)
    windows = torch.randn(ROWS, SIZES["input_size"], series)[begin:end]
    future = torch.randn(ROWS, SIZES["h"], series)[begin:end]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(windows) - future).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained_by(wrapper: str, name: str) -> list[float]:
    """The mean over processes of `train`'s losses, each with a share of the rows."""
    each = ROWS // dist.get_world_size()
    begin = dist.get_rank() * each
    wrap = {"ddp": _data_parallel, "fsdp2": _sharded}[wrapper]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Grad strides do not match")
        losses = torch.tensor(train(name, wrap, begin, begin + each))
    dist.all_reduce(losses)
    return (losses / dist.get_world_size()).tolist()


def _data_parallel(model: nn.Module) -> nn.Module:
    # FEDformer has weights of blocks that it does not use, as neuralforecast's.
    return DistributedDataParallel(model, find_unused_parameters=True)


def _sharded(model: nn.Module) -> nn.Module:
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    scalars = {p for p in model.parameters() if p.dim() == 0}  # FSDP2 refuses them
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    assert all(isinstance(p, DTensor) for p in model.parameters() if p.dim() > 0)
    return model
