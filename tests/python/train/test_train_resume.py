"""An interrupted training resumes with bitwise equal results."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from support.forecaster_runs import error_of, executable, run, small, write_waves

pytestmark = pytest.mark.once


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A valid CSV file."""
    return write_waves(tmp_path / "waves.csv")


def interrupted(command: list[str], signal_number: int) -> subprocess.CompletedProcess[str]:
    """Runs flash_train and sends it a signal after the first epoch."""
    process = subprocess.Popen(
        [str(executable()), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    shown = process.stderr.readline()
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, stdout, shown + stderr)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_resumed_training_is_bitwise_equal(signal_number: int, waves: Path, tmp_path: Path):
    def command(name: str) -> list[str]:
        output = ["--output", str(tmp_path / name), "--report", str(tmp_path / f"{name}.json")]
        return ["TFT", str(waves), "--target", "up", *small("TFT", epochs=6), *output]

    whole = run(*command("whole"))
    assert whole.returncode == 0, whole.stderr
    stopped = interrupted(command("parts"), signal_number)
    assert stopped.returncode == 130, stopped.stderr
    checkpoint = tmp_path / "parts.checkpoint"
    assert f"flash_train resume {checkpoint}" in stopped.stderr
    assert not (tmp_path / "parts").exists()
    resumed = run("resume", checkpoint)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    losses = [
        [
            (epoch["train_loss"], epoch["validation_loss"])
            for epoch in json.loads((tmp_path / f"{name}.json").read_text())["training"]["epochs"]
        ]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_checkpoint_option_writes_after_every_epoch(waves: Path, tmp_path: Path):
    checkpoint, model = tmp_path / "run.checkpoint", tmp_path / "model.safetensors"
    process = run(
        *("PatchTST", waves, "--target", "up", *small()),
        *("--checkpoint", checkpoint, "--output", model),
    )
    assert process.returncode == 0, process.stderr
    before = model.read_bytes()
    resumed = run("resume", checkpoint)  # nothing is left to train
    assert resumed.returncode == 0, resumed.stderr
    assert model.read_bytes() == before
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    assert "truncated" in error_of("resume", checkpoint)


def test_resume_from_another_working_directory(tmp_path: Path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    write_waves(folder / "waves.csv")
    process = run(
        *("PatchTST", "waves.csv", "--target", "up", *small()),
        *("--checkpoint", "run.checkpoint", "--output", "model.safetensors"),
        folder=folder,
    )
    assert process.returncode == 0, process.stderr
    model = folder / "model.safetensors"
    before = model.read_bytes()
    model.unlink()
    resumed = run("resume", folder / "run.checkpoint", folder=elsewhere)
    assert resumed.returncode == 0, resumed.stderr
    assert model.read_bytes() == before
    assert list(elsewhere.iterdir()) == []
