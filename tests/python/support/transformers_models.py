"""Small models of the package transformers, with random weights; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402

VOCABULARY, WIDTH, HEADS, LENGTH = 61, 32, 4, 13

# Standard deviation of the weights: scores of order 1, so that a missing mask, window or bias
# changes the outputs by 1e-2 and more. With the models' own 0.02, all weights of a softmax are
# nearly equal.
DEVIATION = 0.25

Inputs = dict[str, Any]


def token_ids(length: int = LENGTH) -> Tensor:
    """[2, length], without the tokens that end or pad a sequence."""
    return torch.randint(3, VOCABULARY, (2, length))


def left_padding(length: int = LENGTH) -> Tensor:
    """[2, length]: the second sequence begins with four tokens of padding."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, :4] = 0
    return mask


def text() -> Inputs:
    return {"input_ids": token_ids(), "attention_mask": left_padding()}


def right_padded_text() -> Inputs:
    return {"input_ids": token_ids(), "attention_mask": left_padding().flip(1)}


def translation() -> Inputs:
    return right_padded_text() | {"decoder_input_ids": token_ids(7)}


def image() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def speech() -> Inputs:
    return {"input_features": torch.randn(2, 8, 24), "decoder_input_ids": token_ids(7)}


def series() -> Inputs:
    return {"past_values": torch.randn(2, 32, 2)}


def windows() -> Inputs:
    """Series of two lengths: the shorter one is padded at its beginning."""
    return {"past_values": [torch.randn(64), torch.randn(43)], "freq": [0, 1]}


@dataclass(frozen=True)
class Model:
    """A model of transformers: its classes, options and inputs, and its calls of attention."""

    kind: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], Inputs] = text
    output: str = "logits"
    attentions: int = 2

    def create(self, implementation: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The same weights for every implementation."""
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.kind)._from_config(
            config, attn_implementation=implementation
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                first = parameter.flatten()[0]
                # Weights of a norm are 1, biases 0; the others are random.
                center = first if parameter.dim() == 1 and (parameter == first).all() else 0.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(center + DEVIATION * noise)
        return model.to(dtype).eval()

    def sample(self, dtype: torch.dtype = torch.float32) -> Inputs:
        torch.manual_seed(2)
        return {
            name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in self.inputs().items()
        }


DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 4,
}
ALTERNATING = ["sliding_attention", "full_attention"]

MODELS = {
    "Llama": Model("LlamaForCausalLM", "LlamaConfig", DECODER),
    "Mistral": Model("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 5}),
    "Qwen3": Model(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        DECODER
        | {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5}
        | {"layer_types": ALTERNATING},
    ),
    "Gemma 2": Model(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        GEMMA | {"attn_logit_softcapping": 2.0, "layer_types": ALTERNATING},
    ),
    "Gemma 3": Model("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA | {"layer_types": ALTERNATING}),
    "gpt-oss": Model(
        "GptOssForCausalLM",
        "GptOssConfig",
        DECODER
        | {"head_dim": 8, "sliding_window": 5, "layer_types": ALTERNATING}
        | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "Gemma 4": Model(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        DECODER
        | {"head_dim": 8, "global_head_dim": 8, "sliding_window": 5, "num_hidden_layers": 4}
        | {"layer_types": 2 * ALTERNATING, "num_kv_shared_layers": 2}
        | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
        attentions=4,
    ),
    "Inkling 2": Model(
        "Inkling2ForCausalLM",
        "Inkling2TextConfig",
        DECODER
        | {"unpadded_vocab_size": VOCABULARY, "head_dim": 8, "sliding_window_size": 5}
        | {"swa_num_attention_heads": HEADS, "swa_num_key_value_heads": 2, "swa_head_dim": 8}
        | {"d_rel": 4, "rel_extent": 16, "n_layers_per_attn_res_block": 2}
        | {"layer_types": ["hybrid_sliding", "hybrid"]}
        | {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2},
        attentions=6,  # four of them over the layers before
    ),
    "BERT": Model(
        "BertForMaskedLM",
        "BertConfig",
        ENCODER,
        right_padded_text,
    ),
    "ModernBERT": Model(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        ENCODER
        | {"local_attention": 6, "global_attn_every_n_layers": 2, "num_hidden_layers": 3}
        | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        right_padded_text,
        attentions=3,
    ),
    "ViT": Model(
        "ViTModel",
        "ViTConfig",
        VISION,
        image,
        output="last_hidden_state",
    ),
    "T5": Model(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_heads": HEADS,
            "num_layers": 2,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
            "decoder_start_token_id": 0,
        },
        translation,
        attentions=6,
    ),
    "Whisper": Model(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 12,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        speech,
        attentions=6,
    ),
    "CLIP": Model(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {name: x for name, x in ENCODER.items() if name != "pad_token_id"}
            | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            "vision_config": VISION,
            "projection_dim": 16,
        },
        lambda: right_padded_text() | image(),
        output="logits_per_image",
        attentions=4,
    ),
    "PatchTST": Model(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "num_input_channels": 2,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "prediction_length": 8,
            "d_model": WIDTH,
            "num_attention_heads": HEADS,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
        },
        series,
        output="prediction_outputs",
    ),
    "TimesFM": Model(
        "TimesFmModelForPrediction",
        "TimesFmConfig",
        {
            "patch_length": 8,
            "context_length": 64,
            "horizon_length": 8,
            "num_hidden_layers": 2,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "head_dim": 8,
            "num_attention_heads": HEADS,
        },
        windows,
        output="full_predictions",
    ),
}
