"""One call of attention on DTensors and on plain tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flash_attention
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from support.tolerances import CLOSE

_meshes: dict[tuple[int, ...], Any] = {}


def mesh_of(shape: tuple[int, ...]) -> Any:
    import flash_attention.distributed  # noqa: F401  registers the rules

    if shape not in _meshes:
        _meshes[shape] = init_device_mesh("cpu", shape)
    return _meshes[shape]


@dataclass(frozen=True)
class Call:
    """Shapes, the mesh, and where query, key and value are."""

    mesh: tuple[int, ...]
    placements: tuple[Placement, ...]
    heads: tuple[int, int, int] = (4, 4, 4)
    batch: int = 4
    bias: tuple[int, ...] | None = None
    per_head: str | None = None  # slopes and sinks: "H" or "BH"
    options: dict[str, Any] = field(default_factory=dict)
    kept: bool = True
    """Whether the output is expected to be placed as the inputs are."""


def make_inputs(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    heads, key_heads, value_heads = call.heads
    inputs = {
        "query": normal(call.batch, heads, 30, 8),
        "key": normal(call.batch, key_heads, 35, 8),
        "value": normal(call.batch, value_heads, 35, 4),
    }
    if call.bias is not None:
        inputs["bias"] = normal(*call.bias)
    if call.per_head is not None:
        shape = {"H": (heads,), "BH": (call.batch, heads)}[call.per_head]
        inputs["alibi_slopes"] = normal(*shape).abs() / 10
        inputs["sinks"] = normal(*shape)
    return inputs


def _run(
    inputs: dict[str, Tensor], options: dict[str, Any], cotangents: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items()}
    torch.manual_seed(11)
    out, lse = flash_attention.attention_with_lse(**leaves, **options)
    torch.autograd.backward([out, lse], cotangents(out, lse))
    return out.detach(), lse.detach(), {n: leaf.grad for n, leaf in leaves.items()}


def compare(call: Call, dtype: torch.dtype) -> None:
    """Raises AssertionError if DTensors give other results than plain tensors."""
    mesh = mesh_of(call.mesh)
    whole = make_inputs(call, dtype)
    replicated = [Replicate()] * mesh.ndim
    placed = {
        name: distribute_tensor(
            x, mesh, call.placements if name in ("query", "key", "value") else replicated
        )
        for name, x in whole.items()
    }
    weights = [torch.arange(n, dtype=torch.float64).cos().to(dtype) for n in (4, 30)]
    out, lse, gradients = _run(
        whole,
        call.options,
        lambda out, lse: [weights[0].expand(out.shape), weights[1].to(lse.dtype).expand(lse.shape)],
    )

    def distributed_cotangents(out: Tensor, lse: Tensor) -> list[Tensor]:
        return [
            distribute_tensor(w.to(x.dtype).expand(x.shape).contiguous(), mesh, replicated)
            for w, x in zip(weights, (out, lse), strict=True)
        ]

    found = _run(placed, call.options, distributed_cotangents)
    torch.manual_seed(11)
    alone = flash_attention.attention(**placed, **call.options)
    # All messages before the first comparison, so that a failure keeps no process waiting.
    results = [found[0].full_tensor(), found[1].full_tensor(), alone.full_tensor()]
    of_inputs = {name: x.full_tensor() for name, x in found[2].items()}
    dist.barrier()

    if call.kept:
        assert found[0].placements == found[1].placements == call.placements
    assert torch.equal(results[0], out)
    assert torch.equal(results[1], lse)
    assert torch.equal(results[2], out)
    for name, actual in of_inputs.items():
        assert isinstance(found[2][name], DTensor) and found[2][name].dtype is dtype
        if name in ("query", "key", "value"):
            assert found[2][name].placements == call.placements, name
        terms_are_summed = name not in ("query", "key", "value") or call.placements[0] == Shard(1)
        if terms_are_summed or call.batch * call.heads[0] > 0:
            torch.testing.assert_close(
                actual, gradients[name], rtol=CLOSE[dtype], atol=10 * CLOSE[dtype]
            )
