"""Models whose attention selects keys compute the same as with their "eager" attention."""

from __future__ import annotations

import pytest
import torch
from flash_attention.transformers import NAME, register

from originals.test_transformers import assert_same, both
from support.tolerances import TRANSFORMERS_EAGER
from support.transformers_models import DECODER, Model

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

register()
LATENT = DECODER | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
}
SELECTING = {
    "DeepSeek V3.2": Model(
        "DeepseekV32ForCausalLM", "DeepseekV32Config", LATENT | {"first_k_dense_replace": 1}
    ),
    "HY V4": Model("HYV4ForCausalLM", "HYV4Config", LATENT | {"head_dim": 8}),
}


@pytest.mark.parametrize("name", SELECTING)
def test_output_and_gradients_are_those_of_eager(name: str) -> None:
    model = SELECTING[name]
    ours, theirs = both(model, model.sample())
    assert_same(ours, theirs, TRANSFORMERS_EAGER)


@pytest.mark.parametrize("name", SELECTING)
def test_generate_gives_the_tokens_of_eager(name: str) -> None:
    model = SELECTING[name]
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    ours, theirs = (
        model.create(implementation).generate(**model.sample(), **options)
        for implementation in (NAME, "eager")
    )
    assert torch.equal(ours, theirs)


def test_blocks_of_keys_are_refused() -> None:
    """Of MiniMax M3, from its second layer on."""
    options = DECODER | {
        "head_dim": 8,
        "num_local_experts": 4,
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 16,
        "rotary_dim": 4,
        "index_block_size": 2,
        "index_topk_blocks": 2,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
    }
    model = Model("MiniMaxM3VLForCausalLM", "MiniMaxM3VLTextConfig", options)
    with pytest.raises(NotImplementedError, match="expected no block_indices"):
        model.create(NAME)(**model.sample())
