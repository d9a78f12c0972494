"""Attention of DTensors: the same results as of plain tensors, without gathering batch or heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from support import dtensor_calls
from support.dtensor_calls import Call
from support.process_pool import ProcessPool

pytestmark = pytest.mark.once

BATCH, HEADS, LENGTH = (Shard(0),), (Shard(1),), (Shard(2),)

CALLS = {
    "batch": Call((2,), BATCH),
    "heads": Call((2,), HEADS),
    "replicated": Call((2,), (Replicate(),)),
    "length": Call((2,), LENGTH, kept=False),
    "uneven-batch": Call((2,), BATCH, batch=3),
    "empty-shard": Call((2,), BATCH, batch=1),
    "uneven-heads": Call((2,), HEADS, heads=(3, 3, 3)),
    "grouped-heads": Call((2,), HEADS, heads=(8, 4, 2)),
    "one-key-head": Call((2,), (Replicate(),), heads=(4, 1, 4)),
    "heads-that-do-not-divide": Call((2,), HEADS, heads=(6, 3, 6), kept=False),
    "batch-with-options": Call(
        (2,), BATCH, per_head="BH", bias=(4, 1, 30, 35), options={"causal": True}
    ),
    "heads-with-options": Call(
        (2,), HEADS, per_head="H", bias=(4, 30, 35), options={"window": (9, 4), "softcap": 2.0}
    ),
    "broadcast-bias": Call((2,), BATCH, bias=(30, 35), per_head="H"),
    "dropout-batch": Call((2,), BATCH, batch=3, options={"dropout": 0.4}),
    "dropout-heads": Call((2,), HEADS, heads=(3, 3, 3), options={"dropout": 0.4}),
    "dropout-length": Call((2,), LENGTH, options={"dropout": 0.4}, kept=False),
}
MESHES = {
    "batch-and-heads": Call((2, 2), (Shard(0), Shard(1)), per_head="BH", bias=(4, 4, 1, 35)),
    "heads-twice": Call((2, 2), (Shard(1), Shard(1)), heads=(8, 4, 8)),
    "batch-twice": Call((2, 2), (Shard(0), Shard(0)), batch=5, options={"dropout": 0.3}),
    "dropout": Call((2, 2), (Shard(1), Shard(0)), options={"dropout": 0.3, "causal": True}),
    "heads-and-length": Call((2, 2), (Shard(1), Shard(2)), kept=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_two_processes(two_processes: ProcessPool, name: str) -> None:
    two_processes.run(dtensor_calls.compare, CALLS[name], torch.float64)


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_of_two_dimensions(four_processes: ProcessPool, name: str) -> None:
    four_processes.run(dtensor_calls.compare, MESHES[name], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype(two_processes: ProcessPool, dtype: torch.dtype) -> None:
    for name in ("batch-with-options", "heads-with-options", "dropout-heads"):
        call = CALLS[name]
        # A bias of 16 bits has a gradient whose terms are rounded before they are summed.
        two_processes.run(dtensor_calls.compare, replace(call, bias=None), dtype)
