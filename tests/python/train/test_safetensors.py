"""Model files of flash_train, read and written from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.forecaster_runs import Training, error_of, metadata, run, train, with_zeros

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """One short training."""
    return train(tmp_path_factory.mktemp("model"), epochs=1)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in neuralforecast's PatchTST, with the sizes of forecaster_runs.SMALL."""
    patches, hidden, inner, patch, horizon = 9, 8, 32, 7, 4
    shapes: dict[str, tuple[int, ...]] = {
        "model.backbone.W_pos": (patches, hidden),
        "model.backbone.W_P.weight": (hidden, patch),
        "model.backbone.W_P.bias": (hidden,),
        "model.head.linear.weight": (horizon, hidden * patches),
        "model.head.linear.bias": (horizon,),
    }
    linear = {
        "self_attn.W_Q": (hidden, hidden),
        "self_attn.W_K": (hidden, hidden),
        "self_attn.W_V": (hidden, hidden),
        "self_attn.to_out.0": (hidden, hidden),
        "ff.0": (inner, hidden),
        "ff.3": (hidden, inner),
    }
    for layer in range(2):
        prefix = f"model.backbone.encoder.layers.{layer}."
        shapes[prefix + "self_attn.sdp_attn.scale"] = ()
        for name, shape in linear.items():
            shapes[f"{prefix}{name}.weight"] = shape
            shapes[f"{prefix}{name}.bias"] = shape[:1]
        for norm in ("norm_attn.1.", "norm_ffn.1."):
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[prefix + norm + name] = (hidden,)
            shapes[prefix + norm + "num_batches_tracked"] = ()
    return shapes


def test_load_file_gives_the_neuralforecast_state_dict(training: Training):
    tensors = load_file(training.model)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected_shapes()
    for name, tensor in tensors.items():
        integer = name.endswith("num_batches_tracked")
        assert tensor.dtype == (torch.int64 if integer else torch.float32), name
    scale = tensors["model.backbone.encoder.layers.0.self_attn.sdp_attn.scale"]
    assert scale.item() == torch.tensor(4**-0.5).item()


def test_header_holds_hyperparameters_and_scaler(training: Training):
    header = metadata(training.model)
    assert header["model_class"] == "PatchTST"
    parameters = json.loads(header["hyper_parameters"])
    assert parameters["h"] == 4
    assert parameters["input_size"] == 28
    assert parameters["revin_subtract_last"] is True
    ours = json.loads(header["flash_train"])
    assert ours["data"]["columns"]["targets"] == ["up", "down"]
    scaler = ours["scalers"]["up"]
    with training.csv.open() as file:
        values = [float(line.split(",")[1]) for line in file.readlines()[1 : 1 + 112]]
    column = torch.tensor(values, dtype=torch.float64)
    assert scaler["mean"][0] == pytest.approx(column.mean().item(), rel=1e-14)  # two sums' rounding
    deviation = column.std(correction=0).item()
    assert scaler["deviation"][0] == pytest.approx(deviation, rel=1e-14)


def test_file_written_by_python_is_read(training: Training, tmp_path: Path):
    """With a zero head the network adds nothing to the last value: the naive forecast."""
    changed = with_zeros(training, "model.head.linear.weight", "model.head.linear.bias")
    report = tmp_path / "report.json"
    process = run("evaluate", changed, training.csv, "--report", report, "--threads", 1)
    assert process.returncode == 0, process.stderr
    test = json.loads(report.read_text())["test"]
    assert test["model"] == test["naive"]
    assert test["model"] != training.report["test"]["model"]


def test_missing_tensor_is_named_in_the_error(training: Training, tmp_path: Path):
    tensors = load_file(training.model)
    tensors["model.head.linear.wait"] = tensors.pop("model.head.linear.weight")
    changed = tmp_path / "changed.safetensors"
    save_file(tensors, changed, metadata(training.model))
    error = error_of("evaluate", changed, training.csv)
    assert "missing (1): model.head.linear.weight" in error
    assert "unexpected (1): model.head.linear.wait" in error


@pytest.mark.parametrize(
    ("loss", "args"),
    [
        ("MAE", {}),
        ("MQLoss", {"level": [80, 90], "quantiles": None}),
        ("StudentT", {"distribution": "StudentT", "level": [80, 90], "quantiles": None}),
    ],
)
def test_header_records_the_loss(loss: str, args: dict, tmp_path: Path):
    """As in neuralforecast's own files, from which it reconstructs the model."""
    model = train(tmp_path, epochs=1, loss=loss).model
    header = metadata(model)
    stored = json.loads(header["hyper_parameters"])["loss"]
    assert stored["__nf__"] == "loss"
    assert stored["cls"] == ("DistributionLoss" if "distribution" in args else loss)
    assert stored["args"] == args | {"horizon_weight": None}
    quantiles = load_file(model).get("loss.quantiles")
    if loss == "MAE":
        assert quantiles is None
        return
    expected = torch.tensor([0.5, 0.05, 0.1, 0.9, 0.95])
    if loss == "MQLoss":
        assert torch.allclose(quantiles, expected)
    assert json.loads(header["shared"])["loss.quantiles"] == ["valid_loss.quantiles"]


def test_file_without_metadata_is_refused(training: Training, tmp_path: Path):
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(training.model), bare)
    assert "expected a model written by flash_train" in error_of("evaluate", bare, training.csv)


def test_damaged_scaler_is_refused(training: Training, tmp_path: Path):
    header = metadata(training.model)
    ours = json.loads(header["flash_train"])
    ours["scalers"]["up"]["mean"] = [1.0, 2.0]
    changed = tmp_path / "changed.safetensors"
    save_file(load_file(training.model), changed, header | {"flash_train": json.dumps(ours)})
    error = error_of("evaluate", changed, training.csv)
    assert "expected a mean and a deviation for each of 1 columns of up, got 2 and 1" in error
