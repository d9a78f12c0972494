"""FlashAttention, MultiHeadAttention and attention_memory in Python."""

from __future__ import annotations

import dataclasses

import flash_attention
import pytest
import torch
from flash_attention import (
    AttentionMode,
    FlashAttention,
    FlashAttentionConfig,
    MultiHeadAttention,
    MultiHeadAttentionConfig,
    attention_memory,
)
from torch import Tensor

from support.measuring import peak_beyond_result
from support.tolerances import GUIDE_FLOAT64


def random_inputs(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


def largest_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_flash_attention_matches_standard_attention(causal: bool) -> None:
    inputs = random_inputs(4, 512, 64)
    flash = FlashAttention(FlashAttentionConfig(scale=8**-0.5, causal=causal))
    expected = flash_attention.standard_attention(*inputs, scale=8**-0.5, causal=causal)
    assert largest_difference(flash.forward(*inputs), expected) < GUIDE_FLOAT64
    assert torch.equal(flash(*inputs), flash.forward(*inputs))


def test_flash_attention_forwards_every_config_field() -> None:
    fields = {"block_size": 32, "scale": 0.3, "causal": True, "use_simd": False, "dropout": 0.25}
    assert set(fields) == {field.name for field in dataclasses.fields(FlashAttentionConfig)}
    inputs = random_inputs(2, 3, 150, 24)
    torch.manual_seed(1)
    out = FlashAttention(FlashAttentionConfig(**fields))(*inputs)
    torch.manual_seed(1)
    assert torch.equal(out, flash_attention.attention(*inputs, **fields))


def test_config_defaults() -> None:
    assert FlashAttentionConfig() == FlashAttentionConfig(
        block_size=64, scale=None, causal=False, use_simd=True, dropout=0.0
    )
    assert FlashAttention().config == FlashAttentionConfig()
    assert MultiHeadAttentionConfig(8, 2) == MultiHeadAttentionConfig(
        d_model=8,
        num_heads=2,
        dropout=0.0,
        causal=False,
        mode=AttentionMode.FLASH,
        flash_block_size=64,
    )


def test_flash_attention_always_applies_configured_dropout() -> None:
    inputs = random_inputs(2, 60, 8)
    dropped = FlashAttention(FlashAttentionConfig(dropout=0.5))(*inputs)
    assert largest_difference(dropped, FlashAttention()(*inputs)) > 0.01


def test_flash_attention_gradients_match_standard_attention() -> None:
    inputs = [x.requires_grad_() for x in random_inputs(2, 40, 8)]
    flash = FlashAttention(FlashAttentionConfig(causal=True))
    ours = torch.autograd.grad(flash(*inputs).square().sum(), inputs)
    standard = flash_attention.standard_attention(*inputs, causal=True)
    theirs = torch.autograd.grad(standard.square().sum(), inputs)
    assert max(map(largest_difference, ours, theirs)) < GUIDE_FLOAT64


@pytest.mark.parametrize(
    ("field", "value"), [("block_size", 0), ("dropout", -0.1), ("dropout", float("nan"))]
)
def test_flash_attention_rejects_an_invalid_config(field: str, value: float) -> None:
    flash = FlashAttention(FlashAttentionConfig(**{field: value}))
    with pytest.raises(ValueError, match=f"flash::attention: expected .*{field}"):
        flash(*random_inputs(1, 4, 8))


@pytest.mark.parametrize("block_size", [7, 64, 256])
@pytest.mark.parametrize("length", [128, 512, 1024, 2048, 4096])
def test_memory_usage_matches_forward_allocations(length: int, block_size: int) -> None:
    inputs = random_inputs(2, length, 64)
    flash = FlashAttention(FlashAttentionConfig(block_size=block_size))
    measured = peak_beyond_result(lambda: flash(*inputs))
    assert measured == flash.memory_usage(length, 64, 64, 2)


def test_memory_usage_without_simd_matches_the_scalar_kernels() -> None:
    inputs = random_inputs(2, 128, 64)
    flash = FlashAttention(FlashAttentionConfig(use_simd=False))
    assert peak_beyond_result(lambda: flash(*inputs)) == flash.memory_usage(128, 64, 64, 2)


@pytest.mark.parametrize("has_softcap", [False, True], ids=["uncapped", "capped"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_attention_memory_accounts_for_bias_and_softcap(has_bias: bool, has_softcap: bool) -> None:
    query, key = torch.randn(2, 3, 300, 40, requires_grad=True), torch.randn(2, 3, 500, 40)
    options = {
        "bias": torch.zeros(500) if has_bias else None,
        "softcap": 2.0 if has_softcap else 0.0,
    }
    usage = attention_memory(2, 3, 300, 500, 40, 40, has_bias=has_bias, has_softcap=has_softcap)
    with torch.no_grad():
        forward = peak_beyond_result(lambda: flash_attention.attention(query, key, key, **options))
    assert forward == usage.forward
    out = flash_attention.attention(query, key, key, **options)
    grad = torch.ones_like(out)
    backward = peak_beyond_result(lambda: torch.autograd.grad(out, query, grad, retain_graph=True))
    assert backward == usage.backward


def test_attention_memory_rejects_invalid_shape_and_dtype() -> None:
    with pytest.raises(ValueError, match="queries -1"):
        attention_memory(1, 1, -1, 1, 8, 8)
    with pytest.raises(TypeError, match="bfloat16 or float16, got Long"):
        attention_memory(1, 1, 1, 1, 8, 8, torch.int64)


def test_memory_savings_ratio_is_score_bytes_over_usage() -> None:
    flash = FlashAttention()
    usage = flash.memory_usage(1024, 64, 64, 1)
    assert flash.memory_savings_ratio(1024) == pytest.approx(1024 * 1024 * 8 / usage)
    usage = flash.memory_usage(512, 32, 16, 8)
    assert flash.memory_savings_ratio(512, 32, 16, 8) == pytest.approx(8 * 512 * 512 * 8 / usage)


def multi_head(mode: AttentionMode, **fields: object) -> MultiHeadAttention:
    """A float64 module with the same weights on every call."""
    torch.manual_seed(5)
    return MultiHeadAttention(MultiHeadAttentionConfig(mode=mode, **fields)).double()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_both_modes_give_the_same_outputs_and_gradients(causal: bool) -> None:
    query, memory, grad = random_inputs(2, 70, 48)
    results = []
    for mode in AttentionMode:
        module = multi_head(mode, d_model=48, num_heads=6, dropout=0.3, causal=causal)
        torch.manual_seed(9)  # both modes draw the same dropout mask
        out = module(query, memory, memory)
        results.append([out, *torch.autograd.grad(out, list(module.parameters()), grad)])
    flash, standard = results
    assert len(flash) == 9
    assert max(map(largest_difference, flash, standard)) < GUIDE_FLOAT64


@pytest.mark.parametrize("mode", AttentionMode)
def test_multi_head_attention_matches_torch(mode: AttentionMode) -> None:
    """torch.nn.MultiheadAttention stores the weights of the three projections in one tensor."""
    module = multi_head(mode, d_model=24, num_heads=3)
    torchs = torch.nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    projections = (module.q_proj, module.k_proj, module.v_proj)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        torchs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        torchs.out_proj.load_state_dict(module.out_proj.state_dict())
    query = torch.randn(2, 10, 24, dtype=torch.float64)
    key, value = torch.randn(2, 2, 33, 24, dtype=torch.float64)
    expected, _ = torchs(query, key, value)
    assert largest_difference(module(query, key, value), expected) < GUIDE_FLOAT64


@pytest.mark.parametrize("mode", AttentionMode)
def test_multi_head_attention_drops_weights_only_in_training(mode: AttentionMode) -> None:
    module = multi_head(mode, d_model=16, num_heads=2, dropout=0.5)
    x, _, _ = random_inputs(2, 30, 16)
    assert largest_difference(module(x, x, x), module(x, x, x)) > 1e-3
    module.eval()
    assert torch.equal(module(x, x, x), module(x, x, x))


def test_causal_output_ignores_later_positions() -> None:
    module = multi_head(AttentionMode.FLASH, d_model=16, num_heads=4, causal=True)
    x, _, _ = random_inputs(1, 40, 16)
    changed = x.clone()
    changed[:, 25:] = 100.0
    before, after = module(x, x, x), module(changed, changed, changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert largest_difference(before, after) > 0.01


def test_flash_block_size_changes_only_rounding() -> None:
    x, _, _ = random_inputs(1, 300, 16)
    outputs = [
        multi_head(AttentionMode.FLASH, d_model=16, num_heads=2, flash_block_size=size)(x, x, x)
        for size in (16, 256)
    ]
    assert not torch.equal(*outputs)
    assert largest_difference(*outputs) < GUIDE_FLOAT64


def test_repr_shows_the_config() -> None:
    module = multi_head(AttentionMode.STANDARD, d_model=8, num_heads=2)
    assert "num_heads=2" in repr(module)
    assert "mode=standard" in repr(module)


@pytest.mark.parametrize(("d_model", "num_heads"), [(10, 4), (8, 0), (0, 1), (8, -2)])
def test_multi_head_attention_rejects_an_indivisible_d_model(d_model: int, num_heads: int) -> None:
    message = (
        "flash::MultiHeadAttention: expected d_model as a positive multiple of num_heads, "
        f"got d_model {d_model} and num_heads {num_heads}"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        MultiHeadAttention(MultiHeadAttentionConfig(d_model, num_heads))


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 9), (2, 1, 5, 8)], ids=str)
def test_multi_head_attention_error_names_the_misshaped_input(
    name: str, shape: tuple[int, ...]
) -> None:
    module = MultiHeadAttention(MultiHeadAttentionConfig(8, 2))
    inputs = {n: torch.randn(2, 5, 8) for n in ("query", "key", "value")}
    inputs[name] = torch.randn(shape)
    with pytest.raises(ValueError, match=rf"expected {name} as \[batch, length, 8\], got \["):
        module(**inputs)


def test_mismatched_key_and_value_lengths_raise_the_operator_error() -> None:
    module = MultiHeadAttention(MultiHeadAttentionConfig(8, 2))
    x = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match="flash::attention: expected"):
        module(x, x, x[:, :3])
