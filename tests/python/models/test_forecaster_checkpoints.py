"""Forecaster on `.ckpt` files of neuralforecast before 3.3, and on files that are broken."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_attention.models import TFT, Forecaster, PatchTST, iTransformer

from support.forecaster_files import H, save_patchtst, wave

pytestmark = pytest.mark.once


@pytest.fixture
def patchtst(tmp_path: Path) -> Path:
    return save_patchtst(tmp_path)


class Sabotage:
    """Unpickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def old_checkpoint(path: Path, patchtst: Path, **more: Any) -> Path:
    """A file as neuralforecast before 3.3 writes it, of the model in `patchtst`."""
    model = PatchTST.from_checkpoint(patchtst)
    torch.save({"hyper_parameters": model.options | more, "state_dict": model.state_dict()}, path)
    return path


def test_old_checkpoint_is_read(patchtst: Path, tmp_path: Path) -> None:
    path = old_checkpoint(tmp_path / "model.ckpt", patchtst, scaler_type="identity")
    expected = Forecaster.load(patchtst).predict(wave(30))
    assert torch.equal(Forecaster.load(path).predict(wave(30)), expected)


def test_old_checkpoint_runs_no_code(patchtst: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = tmp_path / "model.ckpt"
    old_checkpoint(path, patchtst, optimizer=Sabotage(os.system, f"touch {victim}"))
    with pytest.raises(ValueError, match=r"model\.ckpt, which cannot be read"):
        Forecaster.load(path)  # torch's reader refuses the module of os.system
    # It takes this function for a name, and a placeholder for its result.
    old_checkpoint(path, patchtst, optimizer=Sabotage(subprocess.call, ["touch", str(victim)]))
    assert Forecaster.load(path).horizon == H
    assert not victim.exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], "with hyper_parameters and state_dict"),
        ({"hyper_parameters": 1, "state_dict": {}}, "expected dicts"),
        ({"hyper_parameters": {"h": 1}, "state_dict": {}}, "got the hyperparameters h"),
    ],
)
def test_other_torch_files_are_refused(contents: Any, message: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=message):
        Forecaster.load(tmp_path / "other.ckpt")


def test_broken_files_are_refused(patchtst: Path, tmp_path: Path) -> None:
    whole = old_checkpoint(tmp_path / "whole.ckpt", patchtst).read_bytes()
    broken = tmp_path / "broken.ckpt"
    for end in (4, 100, len(whole) // 2, len(whole) - 30):
        broken.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="which cannot be read"):
            Forecaster.load(broken)
    with pytest.raises(ValueError, match="none.safetensors"):
        Forecaster.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="configuration.json"):
        Forecaster.load(tmp_path)
    with pytest.raises(ValueError, match="`model` only for a folder"):
        Forecaster.load(patchtst, model="PatchTST_0")


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


UNREADABLE = {
    "object": Sabotage(subprocess.call, []),
    "infinite": math.inf,
    "deep": nested(200),
    "huge": [[1] * 1000] * 1000,  # of which the file holds one row
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("name", ["loss", "scaler_type", "patch_len"])
def test_unreadable_hyperparameter_is_refused_where_it_counts(
    name: str, value: Any, patchtst: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    old_checkpoint(path, patchtst, **{name: value})
    with pytest.raises(
        ValueError, match=f"expected the hyperparameter {name} in .* cannot be read"
    ):
        Forecaster.load(path)
    old_checkpoint(path, patchtst, lr_scheduler_kwargs=value)
    assert Forecaster.load(path).horizon == H


@pytest.mark.parametrize("layout", ["sparse", "meta"])
def test_tensors_without_dense_elements_are_refused(
    layout: str, patchtst: Path, tmp_path: Path
) -> None:
    model = PatchTST.from_checkpoint(patchtst)
    state = model.state_dict()
    name = next(iter(state))
    state[name] = state[name].to_sparse() if layout == "sparse" else state[name].to("meta")
    path = tmp_path / "model.ckpt"
    torch.save({"hyper_parameters": model.options, "state_dict": state}, path)
    with pytest.raises(ValueError, match="expected dense tensors in .*, got "):
        Forecaster.load(path)


def test_advice_to_run_the_code_of_a_file_is_not_passed_on(patchtst: Path, tmp_path: Path) -> None:
    path = old_checkpoint(tmp_path / "model.ckpt", patchtst, callback=Sabotage(os.system, "true"))
    with pytest.raises(ValueError, match="cannot be read: .*system") as caught:
        Forecaster.load(path)
    assert "weights_only" not in str(caught.value)
    assert caught.value.__suppress_context__, "a traceback shows no advice either"


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="cannot be read"):
        Forecaster.load(tmp_path / "pipe")


def test_tft_of_the_first_releases_is_recognised(tmp_path: Path) -> None:
    model = TFT(h=H, input_size=8, hidden_size=8, n_head=2)
    added = ("grn_activation", "n_rnn_layers", "rnn_type", "one_rnn_initial_state")
    options = {name: value for name, value in model.options.items() if name not in added}
    torch.save({"hyper_parameters": options, "state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    model.save(tmp_path / "a.safetensors")
    old, new = (Forecaster.load(tmp_path / name) for name in ("a.ckpt", "a.safetensors"))
    assert old.model_class == "TFT"
    assert torch.equal(old.predict(wave(20)), new.predict(wave(20)))


def test_classes_with_options_of_itransformer_are_not_taken_for_it(tmp_path: Path) -> None:
    model = iTransformer(h=H, input_size=8, n_series=1, hidden_size=8, n_heads=2, d_ff=8)
    state = model.state_dict()
    torch.save({"hyper_parameters": model.options, "state_dict": state}, tmp_path / "a.ckpt")
    assert Forecaster.load(tmp_path / "a.ckpt").model_class == "iTransformer"
    softs = {name: value for name, value in model.options.items() if name != "d_layers"}
    torch.save({"hyper_parameters": softs, "state_dict": state}, tmp_path / "softs.ckpt")
    with pytest.raises(ValueError, match="expected a checkpoint of Autoformer, .*, use_norm"):
        Forecaster.load(tmp_path / "softs.ckpt")
