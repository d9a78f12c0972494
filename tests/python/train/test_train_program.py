"""flash_train from Python: the installed command, the module, and the function."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import flash_attention.train
import pytest

from support.forecaster_runs import executable

pytestmark = pytest.mark.once

WAYS = {
    "command": [str(Path(sys.executable).parent / "flash_train")],
    "module": [sys.executable, "-m", "flash_attention.train"],
}


def run(way: str, *arguments: object, **kwargs) -> subprocess.CompletedProcess[str]:
    command = [*WAYS[way], *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["PatchTST", "--season"], ["evaluate", "/nowhere", "x.csv"], ["--oops"]],
)
def test_output_matches_the_built_program(way: str, arguments: list[str]) -> None:
    expected = subprocess.run([executable(), *arguments], capture_output=True, text=True)
    found = run(way, *arguments)
    assert found.returncode == expected.returncode
    assert found.stdout == expected.stdout
    assert found.stderr == expected.stderr


@pytest.mark.parametrize("way", WAYS)
def test_train_and_forecast(way: str, tmp_path: Path) -> None:
    table = tmp_path / "wäves.csv"
    rows = [f"{i},{i % 7}.5" for i in range(120)]
    table.write_text("\n".join(["row,up", *rows]) + "\n")
    model = tmp_path / "model.safetensors"
    training = run(
        way, "PatchTST", table, "--target", "up", "--input-size", 14, "--horizon", 7, "--epochs", 1,
        "--hidden-size", 16, "--n-heads", 2, "--output", model,
    )  # fmt: skip
    assert training.returncode == 0, training.stderr
    forecast = tmp_path / "forecast.csv"
    assert run(way, "predict", model, table, "--forecast-csv", forecast).returncode == 0
    assert len(forecast.read_text().splitlines()) == 1 + 7


def test_main_returns_the_exit_status(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGPIPE)
    assert flash_attention.train.main(["evaluate", "/nowhere", "x.csv"]) != 0
    assert "/nowhere" in capfd.readouterr().err
    assert flash_attention.train.main(["--help"]) == 0
    assert "flash_train" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGPIPE) == before
