"""Attention of DTensors: the same results as of plain tensors, without gathering batch or heads."""

from __future__ import annotations

import copy

import flash_attention
import pytest
import torch
import torch.distributed as dist
from flash_attention import (
    AttentionMode,
    MultiHeadAttention,
    MultiHeadAttentionConfig,
    scaled_dot_product_attention,
    varlen_attention,
)
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from support import dtensor_calls
from support.dtensor_calls import Call
from support.process_pool import ProcessPool
from support.tolerances import CLOSE, MODEL_FLOAT64

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
    "one-key-head": Call((2,), HEADS, heads=(4, 1, 4)),
    "one-value-head": Call((2,), HEADS, heads=(6, 2, 1), per_head="H"),
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
    for name in ("batch-with-options", "heads-with-options", "broadcast-bias", "dropout-heads"):
        two_processes.run(dtensor_calls.compare, CALLS[name], dtype)


def parallel_module() -> None:
    """A module whose projections are sharded gives the results and gradients of the whole one."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    torch.manual_seed(0)
    config = MultiHeadAttentionConfig(d_model=32, num_heads=8, causal=True)
    whole = MultiHeadAttention(config).double()
    divided = copy.deepcopy(whole)
    mesh = dtensor_calls.mesh_of((dist.get_world_size(),))
    columns = ColwiseParallel(use_local_output=False)
    plan = {"q_proj": columns, "k_proj": columns, "v_proj": columns, "out_proj": RowwiseParallel()}
    parallelize_module(divided, mesh, plan)
    x = torch.randn(2, 21, 32, dtype=torch.float64)
    results = []
    for model in (whole, divided):
        inputs = x.clone().requires_grad_()
        out = model(inputs, inputs, inputs)
        out.square().sum().backward()
        results.append((out.detach(), inputs.grad))
    gradients = {name: p.grad.full_tensor() for name, p in divided.named_parameters()}
    dist.barrier()  # a failure keeps no process waiting
    for actual, expected in zip(*results[::-1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=MODEL_FLOAT64, atol=MODEL_FLOAT64)
    for name, p in whole.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=MODEL_FLOAT64, atol=MODEL_FLOAT64)


def test_tensor_parallel_multi_head_attention(processes: ProcessPool) -> None:
    processes.run(parallel_module)


def divided_without_a_sum() -> None:
    """The heads are gathered before out_proj, whose columns are divided: no process adds a term.

    A product of other columns may be rounded otherwise, so the weights are such that none is.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    torch.manual_seed(0)
    config = MultiHeadAttentionConfig(d_model=32, num_heads=8, causal=True)
    whole = MultiHeadAttention(config).double()
    with torch.no_grad():
        for projection in (whole.q_proj, whole.k_proj, whole.v_proj):
            for parameter in projection.parameters():
                parameter.copy_(torch.randint(-2, 3, parameter.shape) / 8)
        whole.out_proj.weight.copy_(torch.eye(32).flip(0))
        whole.out_proj.bias.zero_()
    divided = copy.deepcopy(whole)
    columns = ColwiseParallel(use_local_output=False)
    plan = dict.fromkeys(("q_proj", "k_proj", "v_proj"), columns)
    plan["out_proj"] = ColwiseParallel(input_layouts=Shard(-1), output_layouts=Replicate())
    parallelize_module(divided, dtensor_calls.mesh_of((dist.get_world_size(),)), plan)
    x = torch.randint(-4, 5, (2, 21, 32)).double() / 4
    out = divided(x, x, x)
    dist.barrier()  # a failure keeps no process waiting
    assert torch.equal(out, whole(x, x, x))


def test_without_sums_over_processes_the_bits_are_those_of_one(processes: ProcessPool) -> None:
    processes.run(divided_without_a_sum)


def packed() -> None:
    """Packed attention, divided along the heads."""
    mesh = dtensor_calls.mesh_of((2,))
    generator = torch.Generator().manual_seed(1)
    starts = torch.tensor([0, 5, 5, 20])
    for heads, placement in (((4, 2, 4), Shard(1)), ((4, 4, 1), Shard(0)), ((3, 3, 3), Shard(1))):
        tensors = [
            torch.randn(20, h, 8, generator=generator, dtype=torch.float64) for h in heads
        ] + [torch.rand(3, heads[0], generator=generator, dtype=torch.float64) for _ in range(2)]
        found = []
        for place in (
            lambda x: x,
            lambda x, p=placement: distribute_tensor(x, mesh, [p if x.dim() == 3 else Replicate()]),
        ):
            leaves = [place(x).detach().requires_grad_() for x in tensors]
            out = varlen_attention(
                *leaves[:3], starts, starts, causal=True, alibi_slopes=leaves[3], sinks=leaves[4]
            )
            out.square().sum().backward()
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
        gathered = [x.full_tensor() for x in found[1]]
        dist.barrier()  # a failure keeps no process waiting
        assert torch.equal(gathered[0], found[0][0])
        for actual, expected in zip(gathered, found[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=CLOSE[torch.float64])


def test_packed_attention_is_divided_along_the_heads(two_processes: ProcessPool) -> None:
    two_processes.run(packed)


def drop_in() -> None:
    """torch's signature: with more keys than queries, positions are a plain tensor."""
    mesh = dtensor_calls.mesh_of((2,))
    query, key = torch.randn(2, 4, 9, 8).double(), torch.randn(2, 4, 12, 8).double()
    placed = [distribute_tensor(x, mesh, [Shard(1)]) for x in (query, key, key)]
    for options in ({"is_causal": True}, {"dropout_p": 0.5}, {"scale": 0.3}):
        torch.manual_seed(2)
        expected = scaled_dot_product_attention(query, key, key, **options)
        torch.manual_seed(2 + dist.get_rank())  # the first process draws the seed
        out = scaled_dot_product_attention(*placed, **options)
        whole = out.full_tensor()
        dist.barrier()
        assert out.placements == (Shard(1),)
        assert torch.equal(whole, expected)


def test_drop_in(two_processes: ProcessPool) -> None:
    two_processes.run(drop_in)


def plain_positions() -> None:
    """Positions that every process has are cut with the batch."""
    mesh = dtensor_calls.mesh_of((2,))
    torch.manual_seed(0)
    x = torch.randn(4, 2, 9, 8).double()
    positions = torch.arange(9) + torch.arange(4).reshape(4, 1, 1)
    options = {"causal": True, "query_positions": positions}
    expected = flash_attention.attention(x, x, x, **options)
    placed = distribute_tensor(x, mesh, [Shard(0)])
    out = flash_attention.attention(placed, placed, placed, **options)
    whole = out.full_tensor()
    dist.barrier()
    assert out.placements == (Shard(0),)
    assert torch.equal(whole, expected)


def test_plain_positions_of_each_batch_element(two_processes: ProcessPool) -> None:
    two_processes.run(plain_positions)


def mixed() -> None:
    mesh = dtensor_calls.mesh_of((2,))
    x = torch.ones(2, 2, 4, 8)
    placed = distribute_tensor(x, mesh, [Shard(1)])
    with pytest.raises(
        TypeError, match="expected every tensor as a DTensor, .* got key as a plain"
    ):
        flash_attention.attention(placed, x, placed)
    three, slopes = (
        distribute_tensor(torch.ones(shape), mesh, [Replicate()]) for shape in ((2, 4, 8), (4,))
    )
    with pytest.raises(ValueError, match="expected query, key and value all as"):
        flash_attention.attention(placed, three, placed)
    # Whole shapes are compared: those of the parts may fit on some processes.
    with pytest.raises(ValueError, match="expected alibi_slopes of shape .* = .2. or"):
        flash_attention.attention(placed, placed, placed, alibi_slopes=slopes)
    from flash_attention.distributed import context_parallel_attention

    with pytest.raises(TypeError, match="expected query as a plain tensor .* got DTensor; call"):
        context_parallel_attention(placed, placed, placed)
    rows = distribute_tensor(torch.ones(4, 2, 8), mesh, [Shard(1)])
    starts = torch.tensor([0, 4])
    with pytest.raises(NotImplementedError, match="expected no dropout with DTensors"):
        varlen_attention(rows, rows, rows, starts, starts, dropout=0.5)
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    for options in ({"causal": True}, {"dropout": 0.5}):
        config = MultiHeadAttentionConfig(
            d_model=8, num_heads=2, mode=AttentionMode.STANDARD, **options
        )
        module = MultiHeadAttention(config)
        columns = ColwiseParallel(use_local_output=False)
        parallelize_module(module, mesh, dict.fromkeys(("q_proj", "k_proj", "v_proj"), columns))
        with pytest.raises(NotImplementedError, match="got DTensors; AttentionMode.FLASH takes"):
            module(*[torch.ones(1, 3, 8)] * 3)


def test_what_dtensors_refuse(two_processes: ProcessPool) -> None:
    two_processes.run(mixed)


def inside_of_context_parallel() -> None:
    from torch.distributed.tensor.experimental import context_parallel

    mesh = dtensor_calls.mesh_of((2,))
    query = torch.ones(2, 2, 8, 4)
    text = "outside of torch's context_parallel, got a call inside; flash_attention.distributed"
    with (
        flash_attention.replace_sdpa(),
        context_parallel(mesh, buffers=[query], buffer_seq_dims=[2]),
    ):
        assert query.size(2) == 4
        with pytest.raises(NotImplementedError, match=text):
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    placed = distribute_tensor(query, mesh, [Shard(1)])
    assert flash_attention.attention(placed, placed, placed).shape == query.shape


def test_context_parallel_of_torch_is_refused(two_processes: ProcessPool) -> None:
    two_processes.run(inside_of_context_parallel)
