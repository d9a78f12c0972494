"""The six models as torch modules: copies, dtypes, threads, files, and errors."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import threading
from pathlib import Path

import pytest
import torch
from flash_attention import models
from safetensors import safe_open
from safetensors.torch import load_file

from support import model_fixtures
from support.model_fixtures import Fixture, assert_same, small
from support.tolerances import MODEL_FLOAT32_AT_LEAST

pytestmark = pytest.mark.once

# --- module operations ----------------------------------------------------------------------------


def test_copies_and_pickles_are_independent(typical: Fixture) -> None:
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


def test_copy_does_not_advance_the_torch_generator(typical: Fixture) -> None:
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


def test_replaced_parameters_are_used() -> None:
    model, windows = small(dropout=0.0).eval(), torch.randn(3, 24, 1)
    linear = model.model.head.linear
    linear.weight.data = torch.zeros_like(linear.weight)
    linear.bias = torch.nn.Parameter(torch.zeros_like(linear.bias))
    assert torch.equal(model(windows), windows[:, -1:].expand(-1, 4, -1))
    model(windows).sum().backward()
    assert linear.bias.grad is not None
    model.load_state_dict(small().state_dict(), assign=True)
    assert not torch.equal(model(windows), windows[:, -1:].expand(-1, 4, -1))


def test_data_with_new_strides_are_used() -> None:
    """The same memory with different strides."""
    model, windows = small(dropout=0.0).eval().double(), torch.randn(3, 24, 1).double()
    other = copy.deepcopy(model)
    weight, expected = (
        m.model.backbone.encoder.layers[0].self_attn.W_V.weight for m in (model, other)
    )
    before = model(windows)
    expected.data = weight.data.t().contiguous()
    weight.data = weight.data.t()
    torch.testing.assert_close(model(windows), other(windows))
    assert (model(windows) - before).abs().max() > 1e-4


def test_functional_call_does_not_advance_the_torch_generator() -> None:
    """While a graph awaits its backward, calls with other parameters need a second C++ model."""
    model, windows = small().eval(), torch.randn(3, 24, 1)
    output = model(windows)
    state = torch.get_rng_state()
    others = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
    torch.func.functional_call(model, others, (windows,))
    assert torch.equal(torch.get_rng_state(), state)
    output.sum().backward()


def test_functional_call_interleaves_with_module_calls() -> None:
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


def test_parametrizations_get_gradients() -> None:
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


def test_parameter_references_are_released() -> None:
    model, windows = small(), torch.randn(3, 24, 1)
    weight = model.model.head.linear.weight
    for _ in range(3):
        model(windows).sum().backward()
    gc.collect()
    references = weight._use_count()
    for _ in range(5):
        model(windows).sum().backward()
    assert weight._use_count() == references


def test_concurrent_use_from_several_threads(typical: Fixture) -> None:
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
        return  # it samples keys at random, in the order in which the threads run
    # The threads add their float32 gradients in any order.
    for own, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(own.grad, threads * expected.grad, rtol=1e-4, atol=1e-5)


def test_model_as_submodule() -> None:
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


def test_torch_compile_wraps_the_model() -> None:
    model, windows = small().eval(), torch.randn(3, 24, 1)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(windows), model(windows))


def test_repr_shows_arguments_and_tensors() -> None:
    text = repr(small())
    assert text.startswith("PatchTST(")
    assert "h=4, input_size=24" in text
    assert "(linear): Linear(weight [4, 64], bias [4])" in text


class Adapted(torch.nn.Module):
    """Adds to the weight of a layer, as adapters for fine-tuning do, and shows the old weight."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.bias = layer, layer.bias
        self.low_rank = torch.nn.Parameter(torch.zeros(2, 2))

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight


def test_a_wrapped_layer_is_refused() -> None:
    model, windows = small().eval(), torch.randn(3, 24, 1)
    model(windows)
    model.model.head.linear = Adapted(model.model.head.linear)
    with pytest.raises(ValueError, match="head.linear.weight, got none; was a submodule replaced"):
        model(windows)


def test_linear_layers_are_of_torchs_class() -> None:
    model = small()
    assert isinstance(model.model.head.linear, torch.nn.Linear)
    assert not isinstance(model.model.backbone, torch.nn.Linear)
    with pytest.raises(NotImplementedError, match="call the whole model"):
        model.model.head.linear(torch.zeros(1, 64))


# --- files ----------------------------------------------------------------------------------------


def test_save_and_load_round_trip(typical: Fixture, tmp_path: Path) -> None:
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


def test_load_applies_the_given_settings(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small().save(path)
    settings = dict(use_flash_attention=True, flash_block_size=7, gradient_checkpointing=True)
    shown = "use_flash_attention=True, flash_block_size=7, gradient_checkpointing=True"
    for load in (models.load, models.PatchTST.from_checkpoint):
        assert shown in repr(load(path, **settings))
        assert "use_flash_attention=False, flash_block_size=64" in repr(load(path))


def test_subclass_is_saved_and_loaded_as_its_base_class(tmp_path: Path) -> None:
    class Mine(models.PatchTST):
        pass

    model = Mine(h=4, input_size=24, hidden_size=8, n_heads=2, linear_hidden_size=16)
    assert Mine.model_class() == "PatchTST"
    path = tmp_path / "model.safetensors"
    model.save(path)
    again, plain = Mine.from_checkpoint(path), models.load(path)
    assert type(again) is Mine and type(plain) is models.PatchTST
    for loaded in (again, plain):
        assert_same(loaded, model)


def test_neuralforecast_file_reproduces_its_outputs(tmp_path: Path) -> None:
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

    # Including the loss and training options, which the network does not use.
    assert header(tmp_path / "again.safetensors") == header(checkpoint)


def test_broken_and_mismatched_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="cannot be read"):
        models.load(path)
    small().save(path)
    with pytest.raises(ValueError, match="expected a file of TFT, got PatchTST"):
        models.TFT.from_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated or damaged"):
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
def test_invalid_input_is_refused(name: str) -> None:
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
def test_invalid_argument_is_refused(name: str) -> None:
    arguments, message = ARGUMENTS[name]
    with pytest.raises(ValueError, match=f"^PatchTST: .*{message}"):
        small(**arguments)


def test_column_list_given_as_text_is_refused() -> None:
    with pytest.raises(ValueError, match="expected futr_exog_list as a list of column names"):
        models.TFT(h=4, input_size=8, hidden_size=8, futr_exog_list="price")


def test_model_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a dense tensor on the CPU.* got .*meta"):
        small().to("meta")(WINDOWS)


def test_calling_a_submodule_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="call the whole model"):
        small().model.head(WINDOWS)


def test_untied_shared_parameters_are_refused() -> None:
    fixture = model_fixtures.load("fedformer_low")
    model = fixture.model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    with pytest.raises(ValueError, match="to be the same tensor as .* without assign=True"):
        model(fixture.windows(torch.float32))


def test_removed_submodule_is_named_in_the_error() -> None:
    model = small()
    del model.model.head
    with pytest.raises(ValueError, match="expected the parameter or buffer model.head.linear"):
        model(WINDOWS)
