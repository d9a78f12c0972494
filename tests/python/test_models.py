"""The six models from Python: the original's numbers, and all that a torch.nn.Module can do."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import json
import pickle
import threading
from pathlib import Path

import model_fixtures
import pytest
import torch
from flash_attention import models
from model_fixtures import TYPICAL, Fixture
from safetensors import safe_open
from safetensors.torch import load_file
from tolerances import MODEL_COMPLEX_TANH, MODEL_FLOAT32_AT_LEAST, MODEL_FLOAT64, model_float32

CLASSES = sorted(TYPICAL)
WAYS = {
    "standard": {},
    "flash": {"use_flash_attention": True},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.fixture(params=CLASSES)
def typical(request: pytest.FixtureRequest) -> Fixture:
    """One recorded case of each class."""
    return model_fixtures.load(TYPICAL[request.param])


def parity_cases() -> list:
    return [
        pytest.param(name, settings, id=f"{name}-{way}")
        for name in model_fixtures.names()
        for way, settings in WAYS.items()
        if not (way == "flash" and model_fixtures.load(name).changed_by_flash)
    ]


def tolerance(fixture: Fixture) -> float:
    return MODEL_COMPLEX_TANH if fixture.model_class == "FEDformer" else MODEL_FLOAT64


def small(**settings) -> models.PatchTST:
    """A PatchTST that takes no time, with some dropout."""
    options = dict(hidden_size=8, n_heads=2, linear_hidden_size=16, patch_len=6, stride=3)
    return models.PatchTST(h=4, input_size=24, encoder_layers=2, **(options | settings))


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)


# --- the original's numbers -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), parity_cases())
def test_outputs_and_gradients_in_float64(name: str, settings: dict) -> None:
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
def test_outputs_in_float32(name: str) -> None:
    fixture = model_fixtures.load(name)
    output = fixture.forward(fixture.model(), fixture.windows(torch.float32))
    limit = model_float32(fixture.description["f32_vs_f64_max_abs"])
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, fixture.tensors["out32/y_hat"], rtol=0, atol=limit)


def test_gradients_by_autograd_grad_are_those_of_backward(typical: Fixture) -> None:
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


# --- parameters -----------------------------------------------------------------------------------


def test_arguments_are_the_options_of_the_network_with_their_defaults(typical: Fixture) -> None:
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


def test_state_dict_has_the_names_and_shapes_of_the_original(typical: Fixture) -> None:
    state = typical.model().state_dict()
    expected = typical.under("param/")
    omitted = set(typical.description["omitted_state_dict_keys"])
    losses = {key for key in omitted if key.startswith(("loss.", "valid_loss."))}
    assert set(state) == set(expected) | set(typical.description["tied_keys"]) | (omitted - losses)
    for name, tensor in expected.items():
        assert state[name].shape == tensor.shape, name
        assert state[name].dtype == tensor.dtype, name


def test_a_state_dict_of_the_original_is_taken_with_its_loss(typical: Fixture) -> None:
    model = getattr(models, typical.model_class)(**typical.arguments)
    weights = typical.weights(model) | {"loss.quantiles": torch.ones(3)}
    assert model.load_state_dict(weights, strict=True).missing_keys == []


def test_what_is_not_trained_is_not(typical: Fixture) -> None:
    model = typical.model()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    named = {
        name
        for name in typical.description["requires_grad_false"]
        if not name.startswith(("loss.", "valid_loss."))
    }
    assert frozen == named


def test_parameters_are_ordinary_ones_and_shared_ones_come_once(typical: Fixture) -> None:
    model = typical.model()
    parameters = list(model.parameters())
    assert all(type(parameter) is torch.nn.Parameter for parameter in parameters)
    assert all(parameter.is_leaf for parameter in parameters)
    everywhere = list(model.named_parameters(remove_duplicate=False))
    assert len(everywhere) - len(parameters) == len(typical.description["tied_keys"])


def test_fresh_weights_depend_on_torchs_seed_only(typical: Fixture) -> None:
    def fresh(seed: int) -> models.ForecastModel:
        torch.manual_seed(seed)
        return getattr(models, typical.model_class)(**typical.arguments)

    assert_same(fresh(3), fresh(3))
    one, other = (dict(fresh(seed).named_parameters()) for seed in (3, 4))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_load_state_dict_says_what_does_not_fit(typical: Fixture) -> None:
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
def test_optimizers_train(typical: Fixture, optimizer: type[torch.optim.Optimizer]) -> None:
    model = typical.model().train()
    windows = typical.windows(torch.float32)
    steps = optimizer(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        steps.zero_grad()
        loss = typical.forward(model, windows).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    state = steps.state_dict()
    steps.load_state_dict(copy.deepcopy(state))


def test_gradients_add_up_and_zero_grad_clears_them() -> None:
    model, windows = small(dropout=0.0).eval(), torch.randn(3, 24, 1)
    weight = model.model.head.linear.weight
    model(windows).sum().backward()
    once = weight.grad.clone()
    model(windows).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    model.zero_grad()
    assert weight.grad is None


def test_hooks_of_parameters_see_their_gradients() -> None:
    model, seen = small(), []
    weight = model.model.head.linear.weight
    weight.register_hook(lambda gradient: seen.append(gradient.shape))
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.shape))
    model(torch.randn(3, 24, 1)).sum().backward()
    assert seen == [weight.shape] * 2


def test_frozen_parameters_get_no_gradient_and_others_still_do() -> None:
    model = small()
    model.model.backbone.requires_grad_(False)
    model(torch.randn(3, 24, 1)).sum().backward()
    assert model.model.head.linear.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.model.backbone.parameters())
    model.requires_grad_(False)
    assert not model(torch.randn(3, 24, 1)).requires_grad


def test_a_parameter_changed_before_the_backward_is_noticed() -> None:
    model = small()
    output = model(torch.randn(3, 24, 1)).sum()
    with torch.no_grad():
        model.model.head.linear.weight.add_(1)
        model.model.backbone.W_P.weight.add_(1)
        for layer in (0, 1):
            model.model.backbone.encoder.layers[layer].ff[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_train_and_eval_reach_the_layers() -> None:
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


def test_no_grad_and_inference_mode_make_no_graph() -> None:
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


# --- what torch does to modules -------------------------------------------------------------------


def test_copies_are_their_own_and_pickles_are_the_same(typical: Fixture) -> None:
    model = typical.model()
    windows = typical.windows(torch.float32)
    expected = typical.forward(model, windows).detach()
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stored, weights_only=False),
    ]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    for other in copies:
        assert torch.equal(typical.forward(other, windows).detach(), expected)
        assert len(list(other.parameters())) == len(list(model.parameters()))
        typical.forward(other, windows).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copy_leaves_torchs_generator_alone(typical: Fixture) -> None:
    other = copy.deepcopy(typical.model().eval())
    state = torch.get_rng_state()
    typical_draws = typical.model_class == "Informer"
    other(typical.windows(torch.float32))
    assert typical_draws or torch.equal(torch.get_rng_state(), state)


def test_to_float64_and_back(typical: Fixture) -> None:
    model = typical.model()
    before = copy.deepcopy(model)
    model.double()
    widths = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    for (name, old), (_, new) in zip(
        before.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert new.dtype == widths.get(old.dtype, old.dtype), name
    assert typical.forward(model, typical.windows(torch.float64)).dtype == torch.float64
    assert_same(model.to(torch.float32), before)


def test_replaced_data_and_replaced_parameters_are_used() -> None:
    model, windows = small(dropout=0.0).eval(), torch.randn(3, 24, 1)
    linear = model.model.head.linear
    linear.weight.data = torch.zeros_like(linear.weight)
    linear.bias = torch.nn.Parameter(torch.zeros_like(linear.bias))
    assert torch.equal(model(windows), windows[:, -1:].expand(-1, 4, -1))
    model(windows).sum().backward()
    assert linear.bias.grad is not None
    model.load_state_dict(small().state_dict(), assign=True)
    assert not torch.equal(model(windows), windows[:, -1:].expand(-1, 4, -1))


def test_functional_call_and_the_module_itself_between_each_others_passes() -> None:
    model, windows = small().eval().double(), torch.randn(3, 24, 1, dtype=torch.float64)
    other = {n: (2 * p).detach().requires_grad_() for n, p in model.named_parameters()}

    def alone(parameters: dict) -> torch.Tensor:
        output = torch.func.functional_call(model, parameters, (windows,)).square().sum()
        return torch.autograd.grad(output, parameters["model.head.linear.weight"])[0]

    own = dict(model.named_parameters())
    first = model(windows).square().sum()
    second = torch.func.functional_call(model, other, (windows,)).square().sum()
    name = "model.head.linear.weight"
    assert torch.equal(torch.autograd.grad(first, own[name])[0], alone(own))
    assert torch.equal(torch.autograd.grad(second, other[name])[0], alone(other))
    assert not torch.equal(alone(own), alone(other))


def test_parametrizations_get_the_gradient() -> None:
    model = small()
    torch.nn.utils.parametrizations.weight_norm(model.model.head.linear, "weight")
    model(torch.randn(3, 24, 1)).sum().backward()
    assert model.model.head.linear.parametrizations.weight.original1.grad is not None


def test_the_graph_outlives_the_model() -> None:
    model = small(gradient_checkpointing=True)
    weight = model.model.head.linear.weight
    output = model(torch.randn(3, 24, 1))
    del model
    gc.collect()
    output.sum().backward()
    assert weight.grad is not None


def test_memory_is_given_back() -> None:
    model, windows = small(), torch.randn(3, 24, 1)
    weight = model.model.head.linear.weight
    for _ in range(3):
        model(windows).sum().backward()
    gc.collect()
    references = weight._use_count()
    for _ in range(5):
        model(windows).sum().backward()
    assert weight._use_count() == references


def test_several_threads_use_one_model_at_once(typical: Fixture) -> None:
    model = typical.model().eval()
    windows = typical.windows(torch.float32)
    reference = copy.deepcopy(model)
    torch.manual_seed(0)
    reference(windows).sum().backward()
    threads = 4
    failures: list[BaseException] = []

    def work() -> None:
        try:
            model(windows).sum().backward()
        except BaseException as error:  # noqa: BLE001  (reported below)
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    if typical.model_class == "Informer":
        return  # draws which keys it measures on, in whichever order the threads come
    for own, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(own.grad, threads * expected.grad, rtol=1e-4, atol=1e-5)


def test_a_model_is_a_part_of_another() -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = torch.nn.ModuleList([small(), small()])

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return torch.stack([member(windows) for member in self.members]).mean(0)

    model = Mean()
    model.load_state_dict(model.state_dict())
    model(torch.randn(3, 24, 1)).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


def test_compile_leaves_the_model_whole() -> None:
    model, windows = small().eval(), torch.randn(3, 24, 1)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(windows), model(windows))


def test_print_shows_arguments_and_tensors() -> None:
    text = repr(small())
    assert text.startswith("PatchTST(")
    assert "h=4, input_size=24" in text
    assert "(linear): Node(weight [4, 64], bias [4])" in text


# --- files ----------------------------------------------------------------------------------------


def test_a_file_gives_the_same_model_again(typical: Fixture, tmp_path: Path) -> None:
    model = typical.model()
    path = tmp_path / "model.safetensors"
    model.save(path)
    state = torch.get_rng_state()
    for again in (models.load(path), type(model).from_checkpoint(path)):
        assert type(again) is type(model)
        assert not again.training
        assert again.options == model.options
        assert_same(again, model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_written_by_neuralforecast_gives_its_numbers(tmp_path: Path) -> None:
    checkpoint = model_fixtures.FOLDER / "neuralforecast_checkpoint.safetensors"
    recorded = load_file(model_fixtures.FOLDER / "neuralforecast_forward.safetensors")
    for use_flash_attention in (False, True):
        model = models.load(checkpoint, use_flash_attention=use_flash_attention)
        output = model(recorded["insample_y"].float()).to(recorded["y_hat"].dtype)
        torch.testing.assert_close(output, recorded["y_hat"], rtol=0, atol=MODEL_FLOAT32_AT_LEAST)

    model.save(tmp_path / "again.safetensors")

    def header(path: Path) -> dict:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["hyper_parameters"])

    # Its loss and training options too, which the network does not know.
    assert header(tmp_path / "again.safetensors") == header(checkpoint)


def test_broken_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="cannot be read"):
        models.load(path)
    small().save(path)
    with pytest.raises(ValueError, match="expected a file of TFT, got PatchTST"):
        models.TFT.from_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="cut off or damaged"):
        models.load(path)


# --- errors ---------------------------------------------------------------------------------------

WINDOWS = torch.randn(3, 24, 1)
CALLS = {
    "unknown key": ({"insample": WINDOWS}, "keys insample_y, .* got 'insample'"),
    "nothing": ({}, "expected insample_y"),
    "None": ({"insample_y": None}, "expected insample_y"),
    "shape": (WINDOWS[:, 1:], r"expected insample_y \[batch, 24, 1\], got \[3, 23, 1\]"),
    "dtype": (WINDOWS.double(), "expected insample_y in Float as the parameters are, got Double"),
    "device": (WINDOWS.to("meta"), "expected insample_y on the CPU, got meta"),
    "unexpected": ({"insample_y": WINDOWS, "futr_exog": WINDOWS}, "futr_exog"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_input_is_refused_in_words(name: str) -> None:
    windows, message = CALLS[name]
    with pytest.raises(ValueError, match=f"^PatchTST: .*{message}"):
        small()(windows)


ARGUMENTS = {
    "text for a number": (dict(hidden_size="8"), "expected option hidden_size as a whole number"),
    "out of range": (dict(hidden_size=-8), "expected hidden_size of at least 1, got -8"),
    "text for a switch": (dict(use_flash_attention="yes"), "expected use_flash_attention as bool"),
    "no outputs": (dict(output_size=0), "outputsize_multiplier of at least 1, got 0"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_refused_in_words(name: str) -> None:
    arguments, message = ARGUMENTS[name]
    with pytest.raises(ValueError, match=f"^PatchTST: .*{message}"):
        small(**arguments)


def test_a_wrong_list_of_columns_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="expected futr_exog_list as a list of column names"):
        models.TFT(h=4, input_size=8, hidden_size=8, futr_exog_list="price")


def test_a_model_elsewhere_than_on_the_cpu_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="expected a dense tensor on the CPU.* got .*meta"):
        small().to("meta")(WINDOWS)


def test_a_part_alone_is_refused_in_words() -> None:
    with pytest.raises(NotImplementedError, match="call the whole model"):
        small().model.head(WINDOWS)


def test_shared_parameters_that_are_shared_no_more_are_refused_in_words() -> None:
    fixture = model_fixtures.load("fedformer_low")
    model = fixture.model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    with pytest.raises(ValueError, match="to be the same tensor as .* without assign=True"):
        model(fixture.windows(torch.float32))


def test_a_removed_submodule_is_named() -> None:
    model = small()
    del model.model.head
    with pytest.raises(ValueError, match="expected the parameter or buffer model.head.linear"):
        model(WINDOWS)
