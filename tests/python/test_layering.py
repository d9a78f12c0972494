"""Includes point one way, models -> ops -> csrc; an ISA folder is included from itself only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
ISA_FOLDERS = sorted(p.parent.name for p in (ROOT / "csrc").glob("*/kernels.cpp"))

# Inline functions of these, compiled with an instruction set's flags, could be the copy that the
# linker keeps for the whole library, and then crash on a CPU without that instruction set.
CONTAINERS = {"algorithm", "deque", "functional", "iostream", "map", "memory", "set", "string"}
CONTAINERS |= {"string_view", "unordered_map", "unordered_set", "vector"}


def includes(folder: str) -> Iterator[tuple[Path, str]]:
    """Every (file, what it includes) below `folder`; quoted paths made relative to the root."""
    for file in sorted((ROOT / folder).rglob("*")):
        if file.suffix not in {".h", ".cpp"}:
            continue
        for quote, name in INCLUDE.findall(file.read_text()):
            beside = (file.parent / name).resolve()
            if quote == '"' and beside.is_file():
                name = str(beside.relative_to(ROOT))
            yield file.relative_to(ROOT), name


def offenders(folder: str, forbidden: re.Pattern[str]) -> list[str]:
    found = list(includes(folder))
    assert found, f"no include found below {folder}: has it moved?"
    return [f"{file} includes {name}" for file, name in found if forbidden.match(name)]


def test_kernels_include_neither_torch_nor_the_layers_above() -> None:
    above = re.compile(rf"{TORCH.pattern}|flash_attention/|ops/|models/")
    assert offenders("csrc", above) == []


def test_operator_does_not_include_models() -> None:
    assert offenders("ops", re.compile(r"flash_attention/models/|models/")) == []


def test_models_include_no_kernel() -> None:
    assert offenders("models", re.compile(r"csrc/")) == []


def test_python_of_the_operator_does_not_import_models() -> None:
    importing = re.compile(r"^\s*(from|import) .*\bmodels\b", re.MULTILINE)
    sources = sorted((ROOT / "ops/flash_attention").glob("*.py"))
    assert sources
    assert [file.name for file in sources if importing.search(file.read_text())] == []


def test_public_headers_include_no_private_one() -> None:
    for folder in ("ops/include", "models/include"):
        assert offenders(folder, re.compile(r"(csrc|ops|models)/(?!include/)")) == []


@pytest.mark.parametrize("isa", ISA_FOLDERS)
def test_instruction_set_is_included_from_its_own_folder_only(isa: str) -> None:
    outside = [
        f"{file} includes {name}"
        for folder in ("csrc", "ops", "models", "bench", "tests")
        for file, name in includes(folder)
        if name.startswith(f"csrc/{isa}/")
        and file.parent not in {Path("csrc", isa), Path("tests/csrc")}  # tests/csrc tests its parts
    ]
    assert outside == []


@pytest.mark.parametrize("folder", ["generic", *ISA_FOLDERS])
def test_code_compiled_for_one_instruction_set_includes_no_container(folder: str) -> None:
    pattern = re.compile(rf"({'|'.join(sorted(CONTAINERS))})$")
    assert offenders(f"csrc/{folder}", pattern) == []


def test_every_instruction_set_is_covered() -> None:
    assert {"avx2", "scalar"} <= set(ISA_FOLDERS)
