"""Checks an installed wheel, in an environment that has torch and nothing else of this project.

python packaging/check_wheel.py data/seattle-weather.csv
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import flash_attention
import torch


def check_operator() -> None:
    inputs = [torch.randn(2, 3, 50, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out = flash_attention.attention(*inputs, causal=True)
    truth = flash_attention.standard_attention(*inputs, causal=True)
    torch.testing.assert_close(out, truth, rtol=0, atol=1e-12)
    for found, expected in zip(
        torch.autograd.grad(out.sum(), inputs),
        torch.autograd.grad(truth.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.library.opcheck(torch.ops.flash.attention.default, inputs, {"causal": True})


def check_training(table: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "weather.safetensors")
        program = Path(sys.executable).parent / "flash_train"
        command = [program, "PatchTST", table, "--target", "temp_max", "--epochs", "2"]
        subprocess.run([*command, "--hidden-size", "16", "--output", model], check=True)
        assert model.stat().st_size > 0
        module = [sys.executable, "-m", "flash_attention.train"]
        subprocess.run([*module, "evaluate", model, table], check=True)


if __name__ == "__main__":
    check_operator()
    check_training(Path(sys.argv[1]).resolve())
    info = flash_attention.build_info()
    print(f"flash_attention {info.version}, torch {torch.__version__}, {info.active}: all right")
