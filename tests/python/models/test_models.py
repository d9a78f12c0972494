"""The six models from Python: parity with the originals, parameters, and training."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from flash_attention import models

from support import model_fixtures
from support.model_fixtures import TYPICAL, Fixture, assert_same, small
from support.tolerances import MODEL_COMPLEX_TANH, MODEL_FLOAT64, model_float32

WAYS = {
    "standard": {},
    "flash": {"use_flash_attention": True},
    "checkpointing": {"gradient_checkpointing": True},
}


def parity_cases() -> list:
    return [
        pytest.param(name, settings, id=f"{name}-{way}")
        for name in model_fixtures.names()
        for way, settings in WAYS.items()
        if not (way == "flash" and model_fixtures.load(name).changed_by_flash)
    ]


def tolerance(fixture: Fixture) -> float:
    return MODEL_COMPLEX_TANH if fixture.model_class == "FEDformer" else MODEL_FLOAT64


# --- parity with the originals --------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), parity_cases())
def test_float64_outputs_and_gradients_match_the_original(name: str, settings: dict) -> None:
    fixture = model_fixtures.load(name)
    model = fixture.model(torch.float64, **settings)
    windows = fixture.windows(torch.float64)
    for tensor in windows.values():
        if tensor is not None:
            tensor.requires_grad_()
    output = fixture.forward(model, windows)
    limit = tolerance(fixture)
    torch.testing.assert_close(output, fixture.tensors["out64/y_hat"], rtol=0, atol=limit)
    output.backward(fixture.tensors["w/y_hat"].double())
    own = dict(model.named_parameters())
    for key, expected in fixture.under("grad64/param/").items():
        torch.testing.assert_close(own[key].grad, expected, rtol=limit, atol=limit, msg=key)
    for key, expected in fixture.under("grad64/input/").items():
        torch.testing.assert_close(windows[key].grad, expected, rtol=limit, atol=limit, msg=key)
    for key, sums in fixture.description["grad_stats"].items():
        gradient = own[key].grad if key in own else None
        if sums is None:
            assert gradient is None or not gradient.any(), key
        elif not gradient.is_complex():
            total, absolute, _ = sums
            assert gradient.sum().item() == pytest.approx(total, abs=limit * (1 + absolute)), key
    state = model.state_dict()
    for key, expected in fixture.under("after/").items():
        torch.testing.assert_close(state[key], expected.to(state[key].dtype), rtol=0, atol=limit)


@pytest.mark.parametrize("name", model_fixtures.names())
def test_float32_outputs_match_the_original(name: str) -> None:
    fixture = model_fixtures.load(name)
    output = fixture.forward(fixture.model(), fixture.windows(torch.float32))
    limit = model_float32(fixture.description["f32_vs_f64_max_abs"])
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, fixture.tensors["out32/y_hat"], rtol=0, atol=limit)


def test_autograd_grad_matches_backward(typical: Fixture) -> None:
    model = typical.model(torch.float64)
    windows = typical.windows(torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    typical.forward(model, windows).square().sum().backward()
    output = typical.forward(model, windows).square().sum()
    found = torch.autograd.grad(output, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", ["Autoformer", "FEDformer"])
def test_flash_attention_replaces_the_mechanism_but_not_the_parameters(name: str) -> None:
    fixture = model_fixtures.load(TYPICAL[name])
    windows = fixture.windows(torch.float64)
    replaced = fixture.model(torch.float64, use_flash_attention=True)
    assert_same(replaced, fixture.model(torch.float64))
    output = fixture.forward(replaced, windows)
    assert output.shape == fixture.tensors["out64/y_hat"].shape
    assert (output - fixture.tensors["out64/y_hat"]).abs().max() > 1e-4
    for block_size in (1, 1000):
        same = fixture.model(torch.float64, use_flash_attention=True, flash_block_size=block_size)
        torch.testing.assert_close(
            fixture.forward(same, windows), output, rtol=0, atol=MODEL_FLOAT64
        )
    output.sum().backward()
    projection = replaced.encoder.attn_layers[0].attention.key_projection.weight
    assert projection.grad.any()


# --- parameters -----------------------------------------------------------------------------------


def test_constructor_arguments_match_the_network_options(typical: Fixture) -> None:
    cls = getattr(models, typical.model_class)
    signature = inspect.signature(cls).parameters
    required = {
        name: typical.arguments[name]
        for name, parameter in signature.items()
        if parameter.default is inspect.Parameter.empty
    }
    options = cls(**required).options
    settings = {"output_size", "use_flash_attention", "flash_block_size", "gradient_checkpointing"}
    assert set(signature) - settings == set(options) | (set(signature) & {"fourier_index"})
    for name, value in options.items():
        default = signature[name].default
        if default is inspect.Parameter.empty:
            assert value == required[name]
        elif name == "fourier_index":
            assert all(isinstance(modes, list) for modes in value.values())
        else:
            assert value == default, name
        assert name in cls.__doc__, name


def test_state_dict_matches_the_original(typical: Fixture) -> None:
    state = typical.model().state_dict()
    expected = typical.under("param/")
    omitted = set(typical.description["omitted_state_dict_keys"])
    losses = {key for key in omitted if key.startswith(("loss.", "valid_loss."))}
    assert set(state) == set(expected) | set(typical.description["tied_keys"]) | (omitted - losses)
    for name, tensor in expected.items():
        assert state[name].shape == tensor.shape, name
        assert state[name].dtype == tensor.dtype, name


@pytest.mark.once
def test_tft_mask_in_the_state_dict_is_causal() -> None:
    """As in neuralforecast, which adds the mask to the scores: each step attends itself."""
    model = models.TFT(h=2, input_size=3, hidden_size=8)
    hidden = torch.full((1, 5, 5), -torch.inf).triu(1)
    assert torch.equal(model.state_dict()["temporal_fusion_decoder.attention._mask"], hidden)


def test_state_dict_with_loss_entries_loads(typical: Fixture) -> None:
    model = getattr(models, typical.model_class)(**typical.arguments)
    around = {"loss.quantiles": torch.ones(3), "scaler.revin_bias": torch.zeros(1, 1, 1, 1)}
    weights = typical.weights(model) | around
    assert model.load_state_dict(weights, strict=True).missing_keys == []


def test_untrained_parameters_are_frozen(typical: Fixture) -> None:
    model = typical.model()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    named = {
        name
        for name in typical.description["requires_grad_false"]
        if not name.startswith(("loss.", "valid_loss."))
    }
    assert frozen == named


def test_parameters_are_leaves_and_tied_ones_are_listed_once(typical: Fixture) -> None:
    model = typical.model()
    parameters = list(model.parameters())
    assert all(type(parameter) is torch.nn.Parameter for parameter in parameters)
    assert all(parameter.is_leaf for parameter in parameters)
    everywhere = list(model.named_parameters(remove_duplicate=False))
    assert len(everywhere) - len(parameters) == len(typical.description["tied_keys"])


def test_initial_weights_depend_only_on_the_torch_seed(typical: Fixture) -> None:
    def fresh(seed: int) -> models.ForecastModel:
        torch.manual_seed(seed)
        return getattr(models, typical.model_class)(**typical.arguments)

    assert_same(fresh(3), fresh(3))
    one, other = (dict(fresh(seed).named_parameters()) for seed in (3, 4))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_load_state_dict_names_mismatched_keys(typical: Fixture) -> None:
    model = typical.model()
    weights = model.state_dict()
    name = next(iter(dict(model.named_parameters())))
    with pytest.raises(RuntimeError, match="Missing key.*" + name):
        model.load_state_dict({key: value for key, value in weights.items() if key != name})
    with pytest.raises(RuntimeError, match="Unexpected key.*other"):
        model.load_state_dict(weights | {"other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch for " + name):
        model.load_state_dict(weights | {name: torch.zeros(1, 2, 3, 4)})


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_optimizers_reduce_the_loss(
    typical: Fixture, optimizer: type[torch.optim.Optimizer]
) -> None:
    model = typical.model().train()
    windows = typical.windows(torch.float32)
    steps = optimizer(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):  # few steps: past a pole of FEDformer's complex tanh, rounding dominates
        steps.zero_grad()
        loss = typical.forward(model, windows).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    state = steps.state_dict()
    steps.load_state_dict(copy.deepcopy(state))


def test_gradients_accumulate_and_zero_grad_clears_them() -> None:
    model, windows = small(dropout=0.0).eval(), torch.randn(3, 24, 1)
    weight = model.model.head.linear.weight
    model(windows).sum().backward()
    once = weight.grad.clone()
    model(windows).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    model.zero_grad()
    assert weight.grad is None


def test_parameter_hooks_see_the_gradients() -> None:
    model, seen = small(), []
    weight = model.model.head.linear.weight
    weight.register_hook(lambda gradient: seen.append(gradient.shape))
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.shape))
    model(torch.randn(3, 24, 1)).sum().backward()
    assert seen == [weight.shape] * 2


def test_frozen_parameters_get_no_gradient() -> None:
    model = small()
    model.model.backbone.requires_grad_(False)
    model(torch.randn(3, 24, 1)).sum().backward()
    assert model.model.head.linear.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.model.backbone.parameters())
    model.requires_grad_(False)
    assert not model(torch.randn(3, 24, 1)).requires_grad


def test_in_place_parameter_change_before_backward_is_detected() -> None:
    model = small()
    output = model(torch.randn(3, 24, 1)).sum()
    with torch.no_grad():
        model.model.head.linear.weight.add_(1)
        model.model.backbone.W_P.weight.add_(1)
        for layer in (0, 1):
            model.model.backbone.encoder.layers[layer].ff[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_train_and_eval_apply_to_the_layers() -> None:
    model, windows = small(dropout=0.5), torch.randn(3, 24, 1)
    assert not torch.equal(model(windows), model(windows))
    model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(windows), model(windows))
    before = model.model.backbone.encoder.layers[0].norm_attn[1].running_mean.clone()
    model(windows)
    assert torch.equal(model.model.backbone.encoder.layers[0].norm_attn[1].running_mean, before)
    model.train()(windows)
    norm = model.model.backbone.encoder.layers[0].norm_attn[1]
    assert not torch.equal(norm.running_mean, before)
    assert norm.num_batches_tracked == 3


def test_no_graph_under_no_grad_and_inference_mode() -> None:
    model, windows = small().eval(), torch.randn(3, 24, 1)
    expected = model(windows).detach()
    with torch.no_grad():
        assert not model(windows).requires_grad
    with torch.inference_mode():
        assert torch.equal(model(windows), expected)
        built_inside = small()
    assert torch.equal(model(windows), expected)
    built_inside.load_state_dict(model.state_dict())
    assert torch.equal(built_inside.eval()(windows), expected)
