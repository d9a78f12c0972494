"""The six models with DTensors: sharded parameters, and windows that are divided by the batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from flash_attention import models
from torch import Tensor, nn
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from support import dtensor_calls, model_fixtures
from support.process_pool import ProcessPool
from support.tolerances import MODEL_COMPLEX_TANH, MODEL_FLOAT64

pytestmark = pytest.mark.once

MODELS = sorted(model_fixtures.TYPICAL)
BATCH = (Shard(0),)


def model_and_windows(name: str, training: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """A typical model with float64 weights, and three windows."""
    fixture = model_fixtures.load(model_fixtures.TYPICAL[name])
    windows = fixture.windows(torch.float64)
    given = {key: x for key, x in windows.items() if x is not None}
    return fixture.model(torch.float64).train(training), given


def distributed(windows: dict[str, Tensor], *placements: Placement) -> dict[str, Tensor]:
    mesh = dtensor_calls.mesh_of((dist.get_world_size(),))
    return {key: distribute_tensor(x, mesh, placements) for key, x in windows.items()}


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def run(model: Any, windows: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of parameters for a loss that weighs all its elements."""
    torch.manual_seed(3)
    model.zero_grad()
    out = model(windows)
    weights = torch.arange(out.numel(), dtype=torch.float64).cos().view(out.shape)
    if isinstance(out, DTensor):
        weights = distribute_tensor(weights, out.device_mesh, out.placements)
    (out * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), gradients


def shard_linear_layers(model: nn.Module) -> int:
    """Shards all linear layers, by columns and by rows in turns; returns their number."""
    mesh = dtensor_calls.mesh_of((dist.get_world_size(),))
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    styles = [ColwiseParallel(), RowwiseParallel()]
    parallelize_module(model, mesh, {name: styles[i % 2] for i, name in enumerate(names)})
    return len(names)


def assert_gradients_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    """After all messages, so that a failure keeps no process waiting."""
    gathered = {name: whole(x) for name, x in actual.items()}
    dist.barrier()
    assert gathered.keys() == expected.keys()
    for name, x in expected.items():
        size = float(x.abs().max())
        torch.testing.assert_close(gathered[name], x, rtol=tolerance, atol=tolerance * max(1, size))


def sharded_parameters(name: str) -> None:
    """Every process computes all windows: the bits of one process."""
    model, windows = model_and_windows(name)
    divided = copy.deepcopy(model)
    assert shard_linear_layers(divided) > 1
    expected, gradients = run(model, windows)
    out, found = run(divided, windows)
    gathered = {key: whole(x) for key, x in found.items()}
    dist.barrier()
    assert not isinstance(out, DTensor)
    assert torch.equal(out, expected)
    assert gathered.keys() == gradients.keys()
    for key, x in gradients.items():
        assert torch.equal(gathered[key], x), key
    for key, parameter in divided.named_parameters():
        if isinstance(parameter, DTensor):
            assert parameter.grad is None or parameter.grad.placements == parameter.placements, key


@pytest.mark.parametrize("name", MODELS)
def test_sharded_parameters(two_processes: ProcessPool, name: str) -> None:
    two_processes.run(sharded_parameters, name)


def tolerance_of(name: str) -> float:
    return MODEL_COMPLEX_TANH if name == "FEDformer" else MODEL_FLOAT64


def sharded_batch(name: str, shards_parameters: bool) -> None:
    model, windows = model_and_windows(name)
    divided = copy.deepcopy(model)
    if shards_parameters:
        shard_linear_layers(divided)
    expected, gradients = run(model, windows)
    out, found = run(divided, distributed(windows, *BATCH))
    assert_gradients_close(found, gradients, tolerance_of(name))
    gathered = whole(out)
    dist.barrier()
    assert isinstance(out, DTensor) and out.shape == expected.shape
    # Two windows on the first process, one on the second. Of four, one would have none.
    assert out.placements == (BATCH if dist.get_world_size() == 2 else (Replicate(),))
    tolerance = tolerance_of(name)
    torch.testing.assert_close(gathered, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_windows_are_divided_by_the_batch(two_processes: ProcessPool, name: str) -> None:
    two_processes.run(sharded_batch, name, False)


def test_windows_and_parameters_are_divided(processes: ProcessPool) -> None:
    processes.run(sharded_batch, "iTransformer", True)


class Around(nn.Module):
    """Projections of the past before a model, and of its forecast after it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(24, 24), nn.Linear(4, 6)
        self.model = model_fixtures.small(dropout=0.0)

    def forward(self, past: Tensor) -> Tensor:
        return self.after(self.model(self.before(past).unsqueeze(-1)).squeeze(-1))


def projections_around_a_model() -> None:
    """Projections hand DTensors to the model and get them from it; its parameters are plain."""
    torch.manual_seed(0)
    whole_model = Around().double().eval()
    divided = copy.deepcopy(whole_model)
    plan = {"before": ColwiseParallel(use_local_output=False), "after": RowwiseParallel()}
    parallelize_module(divided, dtensor_calls.mesh_of((dist.get_world_size(),)), plan)
    past = torch.randn(3, 24, dtype=torch.float64)
    expected, gradients = run(whole_model, past)
    out, found = run(divided, past)
    assert_gradients_close(found, gradients, MODEL_FLOAT64)
    assert not isinstance(out, DTensor)
    torch.testing.assert_close(out, expected, rtol=MODEL_FLOAT64, atol=MODEL_FLOAT64)


def test_projections_around_a_model(processes: ProcessPool) -> None:
    processes.run(projections_around_a_model)


def two_dimensions() -> None:
    """Parameters are sharded along one dimension of the mesh, windows along the other."""
    mesh = dtensor_calls.mesh_of((2, 2))
    model, windows = model_and_windows("iTransformer")
    divided = copy.deepcopy(model)
    distribute_module(
        divided,
        mesh,
        lambda _, module, mesh: [
            module.register_parameter(
                key, nn.Parameter(distribute_tensor(p, mesh, [Replicate(), Shard(0)]))
            )
            for key, p in list(module.named_parameters(recurse=False))
        ],
    )
    expected, gradients = run(model, windows)
    placed = {
        key: distribute_tensor(x, mesh, [Shard(0), Replicate()]) for key, x in windows.items()
    }
    out, found = run(divided, placed)
    assert_gradients_close(found, gradients, MODEL_FLOAT64)
    gathered = whole(out)
    dist.barrier()
    assert out.placements == (Shard(0), Replicate())
    torch.testing.assert_close(gathered, expected, rtol=MODEL_FLOAT64, atol=MODEL_FLOAT64)


def test_a_mesh_of_two_dimensions(four_processes: ProcessPool) -> None:
    four_processes.run(two_dimensions)


def training_step(name: str) -> None:
    """Whatever depends on the whole batch sees it: statistics, delays, and dropout's mask."""
    model, windows = model_and_windows(name, training=True)
    divided = copy.deepcopy(model)
    torch.manual_seed(5)
    expected = model(windows).detach()
    torch.manual_seed(5 + dist.get_rank())  # the first process decides
    out = divided(distributed(windows, *BATCH)).detach()
    gathered = whole(out)
    following = torch.rand(())
    others = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(others, following)
    assert out.placements == (Replicate(),)
    assert torch.equal(gathered, expected)
    assert all(torch.equal(x, following) for x in others)
    model_fixtures.assert_same(model, divided)  # with the running statistics


@pytest.mark.parametrize("name", ["Autoformer", "PatchTST"])
def test_layers_that_mix_windows_see_all_of_them(two_processes: ProcessPool, name: str) -> None:
    two_processes.run(training_step, name)


def dropout_of_shards() -> None:
    """Processes with other windows drop other elements, and draw on from the same state."""
    torch.manual_seed(0)
    model = models.TFT(h=2, input_size=4, hidden_size=8, n_head=2, dropout=0.5)
    same = torch.ones(2, 4, 1)
    first, second = whole(model.eval()(distributed({"insample_y": same}, *BATCH)).detach())
    assert torch.equal(first, second)
    torch.manual_seed(1 + dist.get_rank())
    out = model.train()(distributed({"insample_y": same}, *BATCH)).detach()
    first, second = whole(out)
    following = torch.rand(())
    others = [torch.zeros(()) for _ in range(2)]
    dist.all_gather(others, following)
    assert not torch.equal(first, second)
    assert torch.equal(*others)


def test_processes_drop_different_elements_of_their_windows(two_processes: ProcessPool) -> None:
    two_processes.run(dropout_of_shards)


def sampled_keys() -> None:
    """Informer samples in eval mode too: the first process's numbers, on all processes."""
    model, windows = model_and_windows("Informer")
    torch.manual_seed(2)
    expected = model(windows).detach()
    torch.manual_seed(2 + dist.get_rank())
    out = model(distributed(windows, *BATCH)).detach()
    gathered = whole(out)
    dist.barrier()
    torch.testing.assert_close(gathered, expected, rtol=MODEL_FLOAT64, atol=MODEL_FLOAT64)


def test_informer_samples_the_same_keys_on_all_processes(two_processes: ProcessPool) -> None:
    two_processes.run(sampled_keys)


def replicated_by_torch() -> None:
    """distribute_module without a plan: DTensors everywhere, also of buffers."""
    mesh = dtensor_calls.mesh_of((dist.get_world_size(),))
    model, windows = model_and_windows("PatchTST", training=True)
    divided = distribute_module(copy.deepcopy(model), mesh)
    results = []
    for each in (model, divided):
        optimizer = torch.optim.Adam(each.parameters(), lr=1e-2)
        torch.manual_seed(4)
        each(windows).square().sum().backward()
        optimizer.step()
        results.append({name: whole(x.detach()) for name, x in each.state_dict().items()})
    dist.barrier()
    for name, x in results[0].items():
        assert torch.equal(results[1][name], x), name


def test_an_optimizer_on_dtensors(two_processes: ProcessPool) -> None:
    two_processes.run(replicated_by_torch)


def saved(folder: str) -> None:
    """A file has whole parameters, and every process takes part in writing its own."""
    fixture = model_fixtures.load(model_fixtures.TYPICAL["iTransformer"])
    model, windows = fixture.model().eval(), fixture.windows(torch.float32)
    divided = copy.deepcopy(model)
    shard_linear_layers(divided)
    path = Path(folder, f"{dist.get_rank()}.safetensors")
    divided.save(path)
    again = models.load(path)
    dist.barrier()
    assert torch.equal(again(windows), model(windows))


def test_a_file_has_whole_parameters(two_processes: ProcessPool, tmp_path: Path) -> None:
    two_processes.run(saved, str(tmp_path))


def refused() -> None:
    model, windows = model_and_windows("TFT")
    mixed = distributed(windows, *BATCH)
    mixed["insample_y"] = mixed["insample_y"].full_tensor()[:2]
    with pytest.raises(
        ValueError, match="TFT: expected every tensor of windows_batch with the same"
    ):
        model(mixed)
    other = dtensor_calls.mesh_of((1, 2))
    mixed["insample_y"] = distribute_tensor(windows["insample_y"], other, [Replicate(), Shard(0)])
    with pytest.raises(ValueError, match="TFT: expected all DTensors on one mesh"):
        model(mixed)
    wrong = distributed({**windows, "insample_y": windows["insample_y"][:, 1:]}, *BATCH)
    with pytest.raises(ValueError, match="TFT"):
        model(wrong)


def test_what_the_models_refuse(two_processes: ProcessPool) -> None:
    two_processes.run(refused)
