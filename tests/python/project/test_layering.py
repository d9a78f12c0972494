"""Checks the include rules: models -> ops -> csrc, and no code for one ISA leaks into another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[3]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
ISA_FOLDERS = sorted(p.parent.name for p in (ROOT / "csrc").glob("*/kernels.cpp"))

# Folders with kernels of their own that use the vectors of another, and its flags.
BUILT_ON = {"avx512": ("amx", "avx512_bf16"), "avx2": ("amx_emulated",), "neon": ("amx_emulated",)}
# Measures tiles by themselves.
PARTS_ALONE = {Path("bench/attention/tile_peak.cpp")}

# An inline function of these headers that is compiled with an instruction set's flags could be the
# copy that the linker keeps for the whole library, and crash on a CPU without that instruction set.
CONTAINERS = {"algorithm", "deque", "functional", "iostream", "map", "memory", "set", "string"}
CONTAINERS |= {"string_view", "unordered_map", "unordered_set", "vector"}


def includes_of(file: Path) -> Iterator[str]:
    """Yields the includes of one file, with quoted paths made relative to the root."""
    for quote, name in INCLUDE.findall(file.read_text()):
        beside = (file.parent / name).resolve()
        yield str(beside.relative_to(ROOT)) if quote == '"' and beside.is_file() else name


def includes(folder: str) -> Iterator[tuple[Path, str]]:
    """Yields (file, include) for every include below `folder`."""
    for file in sorted((ROOT / folder).rglob("*")):
        if file.suffix in {".h", ".cpp"}:
            yield from ((file.relative_to(ROOT), name) for name in includes_of(file))


def reachable_from(source: str) -> set[str]:
    """Returns `source` and the project files that it includes, directly or indirectly."""
    reached: set[str] = set()
    pending = [source]
    while pending:
        file = pending.pop()
        if file not in reached:
            reached.add(file)
            pending += [name for name in includes_of(ROOT / file) if (ROOT / name).is_file()]
    return reached


def offenders(folder: str, forbidden: re.Pattern[str]) -> list[str]:
    found = list(includes(folder))
    assert found, f"no include found below {folder}: was it moved?"
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
    sources = sorted((ROOT / "ops/flash_attention").rglob("*.py"))
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
        and file.parent not in {Path("csrc", folder) for folder in (isa, *BUILT_ON.get(isa, ()))}
        and file not in PARTS_ALONE
        and file.parent != Path("tests/csrc")
    ]
    assert outside == []


@pytest.mark.parametrize("isa", ISA_FOLDERS)
def test_code_compiled_for_one_instruction_set_includes_no_container(isa: str) -> None:
    files = reachable_from(f"csrc/{isa}/kernels.cpp")
    vectors = next((base for base, users in BUILT_ON.items() if isa in users), isa)
    assert {f"csrc/{vectors}/vec.h", "csrc/kernels.h", "csrc/generic/exp.h"} <= files
    found = [
        f"{file} includes {name}"
        for file in sorted(files)
        for name in includes_of(ROOT / file)
        if name in CONTAINERS
    ]
    assert found == []


def test_models_leave_the_choice_of_instructions_to_the_kernels() -> None:
    own = re.compile(
        r"target_clones|\btarget\(|immintrin|vector_size|omp simd|GCC ivdep|__builtin_cpu"
    )
    sources = [f for f in sorted((ROOT / "models").rglob("*")) if f.suffix in {".h", ".cpp"}]
    assert sources
    assert [str(f.relative_to(ROOT)) for f in sources if own.search(f.read_text())] == []


def test_every_instruction_set_is_covered() -> None:
    assert {"avx2", "neon", "scalar"} <= set(ISA_FOLDERS)
