"""torch's attention modules under `replace_sdpa` give the same results with our kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flash_attention import replace_sdpa
from torch import Tensor, nn

from support.problems import DTYPES, dtype_name
from support.sdpa_calls import runs_ours
from support.tolerances import SDPA_MODULE

WIDTH, HEADS, LENGTH = 32, 4, 20

Run = Callable[[nn.Module, Tensor, dict[str, Tensor]], Tensor]


def padding() -> Tensor:
    """True at padding: the ends of two sequences."""
    mask = torch.zeros(3, LENGTH, dtype=torch.bool)
    mask[1, 15:] = mask[2, 1:] = True
    return mask


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(LENGTH)


def attend(module: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    return module(x, x, x, need_weights=False, **masks)[0]


def encode(module: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    return module(x, **masks)


def decode(module: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    return module(x, x.flip(1)[:, :13], **masks)


class CausalSelfAttention(nn.Module):
    """That of torch's tutorial: one projection for query, key and value, and heads by views."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            part.view(batch, length, HEADS, -1).transpose(1, 2)
            for part in self.project(x).chunk(3, -1)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(out.transpose(1, 2).view(batch, length, WIDTH))


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 64, dropout=0.0, batch_first=True)


def decoder_layer() -> nn.Module:
    return nn.TransformerDecoderLayer(WIDTH, HEADS, 64, dropout=0.0, batch_first=True)


MODULES: dict[str, tuple[Callable[[], nn.Module], Run, str, str]] = {
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        attend,
        "key_padding_mask",
        "attn_mask",
    ),
    "TransformerEncoderLayer": (encoder_layer, encode, "src_key_padding_mask", "src_mask"),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        encode,
        "src_key_padding_mask",
        "mask",
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(decoder_layer(), 2),
        decode,
        "tgt_key_padding_mask",
        "tgt_mask",
    ),
}


def padding_like(attn_mask: Tensor) -> Tensor:
    """The padding mask in the dtype of the attention mask, as torch requires."""
    return torch.zeros(3, LENGTH, dtype=attn_mask.dtype).masked_fill(padding(), -torch.inf)


def masks_of(names: tuple[str, str], which: str, dtype: torch.dtype) -> dict[str, Tensor]:
    pad, limit = names
    mask = causal().to(dtype)
    return {
        "none": {},
        "padding": {pad: padding()},
        "causal": {limit: mask},
        "both": {pad: padding_like(mask), limit: mask},
    }[which]


# What the modules pass on is the same on every instruction set; test_sdpa.py has the results.
@pytest.mark.once
@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("which", ["none", "padding", "causal", "both"])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
# Without the replacement, the encoder's fast path turns padding into nested tensors.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_outputs_and_gradients_match_torch(
    dtype: torch.dtype, name: str, which: str, mode: str
) -> None:
    create, run, *names = MODULES[name]
    module = create().to(dtype).train(mode == "train")
    masks = masks_of(tuple(names), which, dtype)
    x = torch.randn(3, LENGTH, WIDTH, dtype=dtype)
    # The fast path zeroes or omits padded rows, so they are not compared.
    kept = ~padding()

    def results() -> list[Tensor]:
        if mode == "inference":
            with torch.inference_mode():
                return [run(module, x, masks)[kept]]
        leaf = x.clone().requires_grad_()
        out = run(module, leaf, masks)[kept]
        wanted = [leaf, *module.parameters()]
        return [out.detach(), *torch.autograd.grad(out.square().sum(), wanted)]

    expected = results()
    with replace_sdpa():
        assert runs_ours(results)
        actual = results()
    assert not runs_ours(results)
    for mine, theirs in zip(actual, expected, strict=True):
        size = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=SDPA_MODULE[dtype] * size)


@pytest.mark.parametrize("batch_first", [False, True])
def test_transformer_trains_alike(batch_first: bool) -> None:
    losses = []
    for replaced in (False, True):
        torch.manual_seed(2)
        model = nn.Transformer(WIDTH, HEADS, 1, 1, 64, 0.0, batch_first=batch_first)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        source, target = torch.randn(2, 3, 3, WIDTH)
        found = []
        for _ in range(5):
            replacement = replace_sdpa() if replaced else None
            loss = (model(source, target) - target).square().mean()
            loss.backward()
            if replacement is not None:
                replacement.undo()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses.append(found)
    # Plain gradient descent does not amplify rounding errors.
    assert losses[1] == pytest.approx(losses[0], rel=10 * SDPA_MODULE[torch.float32])


def test_module_dropout_follows_its_mode() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True)
    x = torch.randn(2, LENGTH, WIDTH)
    with replace_sdpa():
        assert not torch.equal(attend(module, x, {}), attend(module, x, {}))
        module.eval()
        assert torch.equal(attend(module, x, {}), attend(module, x, {}))


def test_fast_path_is_disabled_under_replacement() -> None:
    layer = encoder_layer().eval()
    x = torch.randn(2, LENGTH, WIDTH)
    with torch.inference_mode():
        expected = layer(x)
        with replace_sdpa():
            assert not torch.backends.mha.get_fastpath_enabled()
            torch.testing.assert_close(layer(x), expected)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_the_switch_does_not_reach() -> None:
    """As docs/torch.md says: weights that are asked for, and nested tensors."""
    module, layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), encoder_layer().eval()
    x = torch.randn(2, LENGTH, WIDTH)
    nested = torch.nested.nested_tensor([x[0], x[1, :3]])
    with replace_sdpa(), torch.inference_mode():
        assert not runs_ours(lambda: module(x, x, x))
        assert runs_ours(lambda: module(x, x, x, need_weights=False))
        with pytest.raises(AssertionError, match="fast path"):
            layer(nested)
    with torch.inference_mode():
        assert layer(nested).is_nested


def test_self_attention_of_the_tutorial() -> None:
    module, x = CausalSelfAttention(), torch.randn(2, LENGTH, WIDTH)

    def results() -> list[Tensor]:
        out = module(x)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(module.parameters()))]

    expected = results()
    with replace_sdpa():
        assert runs_ours(results)
        actual = results()
    for mine, theirs in zip(actual, expected, strict=True):
        size = max(1.0, theirs.abs().max().item())
        tolerance = SDPA_MODULE[torch.float32] * size
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
