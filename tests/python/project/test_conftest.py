"""conftest.py: tests run on every or on the selected instruction set, and unknown skips fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.instruction_sets import SUPPORTED, TESTED

pytestmark = pytest.mark.once

TESTS = Path(__file__).resolve().parents[1]
INI = TESTS.parents[1] / "pyproject.toml"


def run(folder: Path, text: str, *options: str, **environment: str) -> tuple[int, str]:
    """Exit status and output of pytest on one test file, with the same conftest.py."""
    (folder / "test_it.py").write_text(f"import pytest, flash_attention\n{text}\n")
    command = [sys.executable, "-m", "pytest", "-c", INI, "--rootdir", folder, "-p", "conftest"]
    own = {n: v for n, v in os.environ.items() if not n.startswith(("FLASH_", "PYTEST_"))}
    done = subprocess.run(
        [*command, "-v", "-p", "no:cacheprovider", *options, folder],
        env=own | {"PYTHONPATH": str(TESTS)} | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


TWO_TESTS = """
def test_each(isa):
    assert flash_attention.build_info().active == isa

@pytest.mark.once
def test_one(isa):
    assert flash_attention.build_info().active == isa
"""


def test_every_test_runs_on_each_isa_unless_marked_once(
    tmp_path: Path,
) -> None:
    status, text = run(tmp_path, TWO_TESTS)
    assert status == 0, text
    ran = [line.split("::")[1].split()[0] for line in text.splitlines() if " PASSED" in line]
    assert ran == [f"test_each[{isa}]" for isa in TESTED] + ["test_one"]


def test_environment_variable_selects_one_isa(tmp_path: Path) -> None:
    status, text = run(tmp_path, TWO_TESTS, FLASH_ATTENTION_ISA="scalar")
    assert status == 0, text
    assert "test_each[scalar] PASSED" in text and "2 passed" in text


@pytest.mark.parametrize("workers", ["0", "1"])
def test_skip_for_an_unknown_reason_fails_the_run(tmp_path: Path, workers: str) -> None:
    skipping = "def test_it(): pytest.skip('no time')\ndef test_other(): pass"
    status, text = run(tmp_path, f"pytestmark = pytest.mark.once\n{skipping}", f"-n{workers}")
    assert status == 1
    assert "expected at most 0 tests to be skipped because 'no time', got 1" in text
    assert "1 passed, 1 skipped" in text


def test_leaving_another_isa_active_fails_the_test(tmp_path: Path) -> None:
    text = "import torch\n@pytest.mark.once\ndef test_it(): torch.ops.flash._use_isa('scalar')"
    status, text = run(tmp_path, text)
    assert (status != 0) == (SUPPORTED[0] != "scalar")
    assert "a test changed the instruction set" in text or SUPPORTED[0] == "scalar"
