"""Models of the package transformers compute the same as with their "eager" attention."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from flash_attention.transformers import NAME, register
from flash_attention.transformers.pattern import PatternMask
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DataCollatorWithFlattening

from support.sdpa_calls import OURS
from support.tolerances import TRANSFORMERS_BFLOAT16_TIMES_EAGER, TRANSFORMERS_EAGER
from support.transformers_models import (
    MODELS,
    VOCABULARY,
    Inputs,
    Model,
    left_padding,
    text,
    token_ids,
)

# The options are the operator's, which every instruction set has tests for.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

register()
DECODERS = [name for name, model in MODELS.items() if model.inputs is text]
# With a static cache, Inkling 2 fails in transformers 5.24, with "eager" too.
STATIC = [name for name in DECODERS if name != "Inkling 2"]


def results(
    model: nn.Module, name: str, inputs: Inputs, kept: Tensor | None = None
) -> dict[str, Tensor]:
    """The output, without rows of padding, and the gradient of every parameter."""
    out = model(**inputs)[name]
    if kept is not None:
        out = out[kept]
    torch.manual_seed(3)
    (out * torch.randn_like(out)).sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach()} | gradients


def tokens_of(model: Model, inputs: Inputs, out: Tensor) -> Tensor | None:
    """bool [2, L]: the rows of the output that are not padding; None if there are none."""
    mask = inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.shape == out.shape[:2] else None


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], allowed: float) -> None:
    """Each tensor within `allowed` of its largest element, or of 1."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        error = (found[name] - theirs).abs().max().item()
        assert error <= allowed * max(1.0, theirs.abs().max().item()), (name, error)


def both(
    model: Model, inputs: Inputs, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of this package and of "eager"."""
    found = []
    for implementation in (NAME, "eager"):
        module = model.create(implementation, dtype)
        with torch.no_grad():
            out = module(**inputs)[model.output]
        found.append(results(module, model.output, inputs, tokens_of(model, inputs, out)))
    return found[0], found[1]


@pytest.mark.parametrize("name", MODELS)
def test_output_and_gradients_are_those_of_eager(name: str) -> None:
    model = MODELS[name]
    ours, theirs = both(model, model.sample())
    assert theirs["output"].abs().max() > 0.1
    assert_same(ours, theirs, TRANSFORMERS_EAGER)


@pytest.mark.parametrize("name", MODELS)
def test_our_kernels_compute_every_attention(name: str) -> None:
    model = MODELS[name]
    module, inputs = model.create(NAME), model.sample()
    with torch.autograd.profiler.profile() as profile, warnings.catch_warnings():
        # The mask of a model that computes attention itself.
        warnings.filterwarnings("error", "flash_attention.transformers")
        module(**inputs)
    ran = Counter(event.name for event in profile.function_events)
    assert ran[OURS] + ran[f"{OURS}_with_lse"] == model.attentions
    assert ran["aten::scaled_dot_product_attention"] == 0


def distance(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The mean, over the tensors, of the norm of the difference relative to that of the tensor.

    Tensors that cancel, such as the gradient of the bias of keys, have no exact value.
    """
    assert found.keys() == exact.keys()
    largest = max(x.norm() for x in exact.values())
    relative = [
        (found[name].float() - x).norm() / x.norm()
        for name, x in exact.items()
        if x.norm() > 1e-4 * largest
    ]
    return torch.stack(relative).mean().item()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "BERT", "T5"])
def test_bfloat16_is_as_accurate_as_with_eager(name: str, autocast: bool) -> None:
    model = MODELS[name]
    dtype = torch.float32 if autocast else torch.bfloat16
    _, exact = both(model, model.sample())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours, theirs = (distance(found, exact) for found in both(model, model.sample(), dtype))
    assert 0 < ours < TRANSFORMERS_BFLOAT16_TIMES_EAGER * theirs


def test_the_position_bias_of_t5_has_a_gradient() -> None:
    model = MODELS["T5"]
    ours, _ = both(model, model.sample())
    biases = [gradient for key, gradient in ours.items() if "relative_attention_bias" in key]
    assert len(biases) == 2 and all(gradient.abs().max() > 1e-3 for gradient in biases)


LENGTHS = (4, 1, 8)
PACKED = {"position_ids": torch.cat([torch.arange(n) for n in LENGTHS]).expand(2, -1)}
STARTS = torch.tensor([0, *LENGTHS, *LENGTHS]).cumsum(0).int()
OFFSETS = {"cu_seq_lens_q": STARTS, "cu_seq_lens_k": STARTS, "max_length_q": 8, "max_length_k": 8}


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2"])
def test_position_ids_of_packed_sequences(name: str) -> None:
    model = MODELS[name]
    ours, theirs = both(model, {"input_ids": token_ids(), "use_cache": False} | PACKED)
    assert_same(ours, theirs, TRANSFORMERS_EAGER)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "gpt-oss"])
def test_offsets_of_packed_sequences(name: str) -> None:
    """gpt-oss needs them: it does not tell its mask function the position ids."""
    model, tokens = MODELS[name], token_ids()
    module = model.create(NAME)
    with torch.no_grad():
        ours = module(input_ids=tokens, use_cache=False, **PACKED, **OFFSETS).logits
        parts = [part for row in tokens for part in row.split(LENGTHS)]
        alone = [model.create("eager")(input_ids=part[None]).logits[0] for part in parts]
    assert_same({"output": ours.flatten(0, 1)}, {"output": torch.cat(alone)}, TRANSFORMERS_EAGER)


def test_a_flattened_batch_trains_as_with_eager() -> None:
    """With the offsets that the collator adds, also where the model makes a cache."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    first, second = token_ids().tolist()
    batch = collator([{"input_ids": first[:5]}, {"input_ids": second}])
    model = MODELS["Mistral"]
    ours = model.create(NAME).train()(**batch).loss.item()
    theirs = model.create("eager").train()(**batch, use_cache=False).loss.item()
    assert ours == pytest.approx(theirs, rel=TRANSFORMERS_EAGER)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 4}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize(
    ("name", "cache"), [(x, "dynamic") for x in DECODERS] + [(x, "static") for x in STATIC]
)
def test_generate_gives_the_tokens_of_eager(name: str, cache: str, options: dict[str, Any]) -> None:
    """Past the window of the models that have one, with a padded prompt."""
    check_generate(name, options | {"cache_implementation": cache})


@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str
)
@pytest.mark.parametrize("name", ["T5", "Whisper"])
def test_generate_of_an_encoder_and_a_decoder(name: str, options: dict[str, Any]) -> None:
    check_generate(name, options)


def check_generate(name: str, options: dict[str, Any]) -> None:
    model = MODELS[name]
    inputs = model.sample()
    inputs.pop("decoder_input_ids", None)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12} | options
    ours, theirs = (
        model.create(implementation).generate(**inputs, **options)
        for implementation in (NAME, "eager")
    )
    assert torch.equal(ours, theirs)
    assert ours.unique().numel() > 3


class LargestResult(TorchDispatchMode):
    """The largest number of elements of a result of any operator."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and not isinstance(x, PatternMask):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "gpt-oss", "BERT"])
def test_no_matrix_of_queries_and_keys_is_stored(name: str) -> None:
    model, length = MODELS[name], 1000
    options = model.options | {"max_position_embeddings": length}
    module = replace(model, options=options).create(NAME)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, :200] = 0
    with LargestResult() as largest:
        module(input_ids=token_ids(length), attention_mask=mask).logits.sum().backward()
    assert largest.elements >= 2 * length * VOCABULARY
    assert largest.elements < length * length


def test_gradient_checkpoints() -> None:
    model, kept = MODELS["Llama"], left_padding().bool()
    inputs = model.sample()
    expected = results(model.create("eager"), "logits", inputs, kept)
    module = model.create(NAME).train()
    module.gradient_checkpointing_enable()
    assert_same(results(module, "logits", inputs, kept), expected, TRANSFORMERS_EAGER)


def test_compiled_model() -> None:
    model, kept = MODELS["Llama"], left_padding().bool()
    model = replace(model, options=model.options | {"num_hidden_layers": 1})
    inputs = model.sample() | {"use_cache": False}
    with torch.no_grad():
        expected = model.create("eager")(**inputs).logits[kept]
        compiled = torch.compile(model.create(NAME), backend="eager", fullgraph=True)
        found = compiled(**inputs).logits[kept]
    assert_same({"output": found}, {"output": expected}, TRANSFORMERS_EAGER)


def test_generate_with_a_compiled_forward() -> None:
    """`generate` makes the masks of a static cache outside what is compiled."""
    model = MODELS["Llama"]
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    expected = model.create("eager").generate(**model.sample(), **options)
    module = model.create(NAME)
    compilations = CompileCounter()
    module.forward = torch.compile(module.forward, backend=compilations, fullgraph=True)
    found = module.generate(**model.sample(), **options, cache_implementation="static")
    assert torch.equal(found, expected)
    assert compilations.frame_count <= 3  # the prompt, a token, and a token of any position


def test_exported_model() -> None:
    model, kept = MODELS["Mistral"], left_padding().bool()
    model = replace(model, options=model.options | {"num_hidden_layers": 1})
    inputs = model.sample() | {"use_cache": False}
    with torch.no_grad():
        expected = model.create("eager")(**inputs).logits[kept]
        program = torch.export.export(model.create(NAME), (), inputs, strict=False)
        found = program.module()(**inputs).logits[kept]
    assert "flash.attention.default" in {str(node.target) for node in program.graph.nodes}
    assert_same({"output": found}, {"output": expected}, TRANSFORMERS_EAGER)


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_dropout_is_for_training_only(name: str) -> None:
    model = MODELS[name]
    key = "attention_dropout" if name == "Llama" else "attention_probs_dropout_prob"
    options = model.options | {key: 0.5, "hidden_dropout_prob": 0.0}
    module = replace(model, options=options).create(NAME)
    inputs = model.sample()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return module(**inputs).logits

    assert torch.equal(run(0), run(1))
    module.train()
    assert torch.equal(run(0), run(0))
    assert (run(0) - run(1)).abs().max() > 1e-2


def test_a_custom_mask_is_complete() -> None:
    model = MODELS["Llama"]
    inputs = model.sample()
    mask = torch.rand(2, 1, 13, 13) < 0.5
    mask |= torch.eye(13, dtype=torch.bool)
    added = torch.zeros(2, 1, 13, 13).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = results(model.create("eager"), "logits", inputs | {"attention_mask": added})
    for own in (mask, added):
        found = results(model.create(NAME), "logits", inputs | {"attention_mask": own})
        assert_same(found, expected, TRANSFORMERS_EAGER)


def test_a_model_without_the_interface_warns_and_computes_as_with_eager() -> None:
    options = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    model = Model("BloomForCausalLM", "BloomConfig", options)
    inputs = model.sample()
    expected = model.create("eager")(**inputs).logits
    with pytest.warns(UserWarning, match="If the model computes attention itself"):
        found = model.create(NAME)(**inputs).logits
    assert torch.equal(found, expected)


def test_weights_are_not_returned() -> None:
    model = MODELS["Llama"]
    module = model.create("eager")
    module.set_attn_implementation(NAME)
    with pytest.raises((NotImplementedError, ValueError), match="output_attentions"):
        module(**model.sample(), output_attentions=True)
