"""The installed package, and the errors of import, pip and CMake for a wrong or missing torch."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flash_attention
import pytest
import torch

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = Path(flash_attention.__file__).parent
FIRST, END = map(
    int,
    re.search(
        r"^torch>=2\.(\d+),<2\.(\d+)", (ROOT / "requirements.txt").read_text(), re.M
    ).groups(),
)
SUPPORTED = [f"2.{minor}" for minor in range(FIRST, END)]
# The installed package was compiled for one or several torch releases.
COMPILED = flash_attention._library.releases()
ACTIVE = ".".join(torch.__version__.split("+")[0].split(".")[:2])
VERSION = re.search(r"project\(\w+ VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
# The source folder of each folder in the installed package.
PYTHON_SOURCES = {
    "flash_attention": "ops/flash_attention",
    "flash_attention/distributed": "ops/flash_attention/distributed",
    "flash_attention/flash_attn_interface": "ops/flash_attention/flash_attn_interface",
    "flash_attention/flex": "ops/flash_attention/flex",
    "flash_attention/models": "models/python",
    "flash_attention/train": "models/train/python",
    "flash_attention/transformers": "ops/flash_attention/transformers",
}
LIBRARIES = ["libflash_attention.so", "libflash_models.so"]

FAKE_TORCH = {
    "older": (f'__version__ = "2.{FIRST - 1}.1+cpu"\n', f"2.{FIRST - 1}.1"),
    "newer": (f'__version__ = "2.{END}.0"\n', f"2.{END}.0"),
    "missing": ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n", "none"),
}


def with_modules(folder: Path) -> dict[str, str]:
    """The environment with `folder` at the front of PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}


def write_torch(folder: Path, source: str) -> None:
    """Writes a mock torch package to `folder` whose __init__.py is `source`."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)


@pytest.fixture(params=FAKE_TORCH)
def fake_torch(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, str], str]:
    """An environment with another torch or none, and how error messages name it."""
    source, found = FAKE_TORCH[request.param]
    write_torch(tmp_path, source)
    return with_modules(tmp_path), found


def failure(*command: object, **kwargs) -> str:
    """The output of a command that must fail, with white space collapsed."""
    command = [str(word) for word in command]
    result = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    assert result.returncode != 0, f"expected {command} to fail, got {result.stdout}"
    return " ".join((result.stdout + result.stderr).split())


def test_import_error_names_the_required_torch(fake_torch) -> None:
    environment, found = fake_torch
    printed = failure(sys.executable, "-c", "import flash_attention", env=environment)
    assert "ImportError: flash_attention: " in printed
    assert f"got {'none' if found == 'none' else 'torch ' + found}" in printed
    assert f"torch {', '.join(COMPILED)}, got" in printed
    assert f"{sys.executable} -m pip install 'torch=={COMPILED[-1]}.*'" in printed


def test_import_error_of_a_torch_dependency_is_passed_on(tmp_path: Path) -> None:
    """The error is not about torch's version, which another torch would not solve."""
    lacking = "raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n"
    write_torch(tmp_path, lacking)
    program = (sys.executable, "-c", "import flash_attention")
    printed = failure(*program, env=with_modules(tmp_path))
    assert printed.endswith("ModuleNotFoundError: No module named 'numpy'")
    assert "expected torch" not in printed


def test_pip_install_error_names_the_required_torch(fake_torch, tmp_path) -> None:
    environment, found = fake_torch
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    printed = failure(*pip, "--target", tmp_path / "target", ROOT, env=environment)
    assert f"expected torch {', '.join(SUPPORTED)} to compile against, got {found}" in printed
    assert f'pip install "torch=={SUPPORTED[-1]}.*"' in printed
    assert "pip install --no-build-isolation ." in printed


@pytest.mark.parametrize("minor", [FIRST - 1, END, None])
def test_cmake_error_names_the_required_torch(minor: int | None, tmp_path: Path) -> None:
    find = ["-DCMAKE_DISABLE_FIND_PACKAGE_Python3=ON", "-DCMAKE_PREFIX_PATH=/nowhere"]
    if minor is not None:
        headers = tmp_path / "include" / "torch"
        (headers / "csrc/api/include/torch").mkdir(parents=True)
        (headers / "csrc/api/include/torch/torch.h").touch()
        (headers / "headeronly").mkdir()
        (tmp_path / "share/cmake").mkdir(parents=True)
        numbers = {"MAJOR": 2, "MINOR": minor, "PATCH": 1}
        lines = [f"#define TORCH_VERSION_{name} {number}\n" for name, number in numbers.items()]
        (headers / "headeronly/version.h").write_text("".join(lines))
        find = [f"-DCMAKE_PREFIX_PATH={tmp_path}/share/cmake"]
    printed = failure("cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", *find)
    found = "none" if minor is None else f"torch 2.{minor}.1 in {tmp_path}/include"
    assert f"expected torch {', '.join(SUPPORTED)}, found {found}. Run" in printed
    assert f'pip install "torch=={SUPPORTED[-1]}.*"' in printed
    assert "-DCMAKE_PREFIX_PATH=" in printed


def copy_of_package(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    copy = tmp_path / "flash_attention"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy, with_modules(tmp_path)


@pytest.mark.parametrize("name", LIBRARIES)
def test_import_error_names_a_missing_library(name: str, tmp_path: Path) -> None:
    copy, environment = copy_of_package(tmp_path)
    library = copy / "lib" / f"torch-{ACTIVE}" / name
    library.unlink()
    printed = failure(sys.executable, "-c", "import flash_attention.models", env=environment)
    assert f"expected the compiled library at {library}, got no such file" in printed
    assert "pip install --no-build-isolation --force-reinstall --no-deps ." in printed


@pytest.mark.parametrize("name", LIBRARIES)
def test_import_error_names_a_broken_library(name: str, tmp_path: Path) -> None:
    copy, environment = copy_of_package(tmp_path)
    library = copy / "lib" / f"torch-{ACTIVE}" / name
    library.write_bytes(b"not a shared library")
    printed = failure(sys.executable, "-c", "import flash_attention.models", env=environment)
    assert f"ImportError: flash_attention: expected {library} to load, got" in printed
    assert "pip install --no-build-isolation --force-reinstall --no-deps ." in printed


def test_import_error_for_the_uncompiled_source_folder() -> None:
    environment = with_modules(ROOT / "ops")
    printed = failure(sys.executable, "-c", "import flash_attention", env=environment)
    assert "ImportError: flash_attention: expected a compiled package" in printed


def test_version_matches_the_project() -> None:
    assert flash_attention.__version__ == VERSION
    assert importlib.metadata.version("flash_attention") == VERSION
    assert flash_attention.build_info().version == VERSION


def test_build_info_names_torch_and_the_kernels() -> None:
    info = flash_attention.build_info()
    assert info.torch_version.split("+")[0] == torch.__version__.split("+")[0]
    assert {"scalar", "amx-emulated"} <= {isa.name for isa in info.isa}
    assert info.active in [isa.name for isa in info.isa if isa.supported]
    assert info.active == os.environ.get("FLASH_ATTENTION_ISA", info.active)
    assert all(isa.description for isa in info.isa)


def test_wheel_contents() -> None:
    files = {str(file) for file in importlib.metadata.files("flash_attention")}
    package = {name for name in files if "dist-info" not in name and "__pycache__" not in name}
    modules = {
        f"{folder}/{path.name}"
        for folder, sources in PYTHON_SOURCES.items()
        for path in (ROOT / sources).glob("*.py")
    }
    headers = {
        f"flash_attention/{path.relative_to(ROOT / layer)}"
        for layer in ("ops", "models")
        for path in (ROOT / layer / "include").rglob("*.h")
    }
    libraries = {
        f"flash_attention/lib/torch-{release}/{name}"
        for release in COMPILED
        for name in (*LIBRARIES, "libflash_train.so")
    }
    assert "../../../bin/flash_train" in package
    package = {name for name in package if "/cmake/" not in name and "/bin/" not in name}
    others = package - modules - headers - libraries
    assert others == {
        "flash_attention/lib/libflash_kernels.so",
        "flash_attention/include/flash_attention/version.h",
        "flash_attention/py.typed",
    }
    assert modules | headers | libraries <= package


def test_models_library_is_loaded_on_import_of_models() -> None:
    program = (
        "import flash_attention\n"
        "loaded = lambda: 'libflash_models' in open('/proc/self/maps').read()\n"
        "before = loaded()\n"
        "import flash_attention.models\n"
        "print(before, loaded())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ["False", "True"]


def test_cmake_error_names_a_missing_dependency(tmp_path: Path) -> None:
    find = ["-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"]
    find += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    printed = failure("cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", *find)
    assert "expected nlohmann_json 3.11 or newer, found none" in printed
    assert "apt-get install nlohmann-json3-dev" in printed


def test_wheel_is_independent_of_the_python_version() -> None:
    wheel = importlib.metadata.distribution("flash_attention").read_text("WHEEL")
    assert re.search(r"^Tag: py3-none-linux_\w+$", wheel, re.M)
    for name in LIBRARIES:
        dynamic = subprocess.run(
            ["readelf", "-d", PACKAGE / "lib" / f"torch-{ACTIVE}" / name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "libtorch_cpu.so" in dynamic
        assert "python" not in dynamic


def test_wheel_requires_the_torch_it_was_compiled_for() -> None:
    (requirement,) = importlib.metadata.requires("flash_attention")
    if COMPILED == SUPPORTED:
        assert requirement in (f"torch>=2.{FIRST},<2.{END}", f"torch<2.{END},>=2.{FIRST}")
    else:
        assert requirement == f"torch=={COMPILED[0]}.*"


def test_cmake_project_builds_against_the_installed_package(tmp_path: Path) -> None:
    """Uses only headers, libraries and the CMake package from the wheel, and runs the program."""
    find = [f"-DCMAKE_PREFIX_PATH={flash_attention.cmake_prefix_path}"]
    find += ["-DCMAKE_DISABLE_FIND_PACKAGE_Python3=ON"]
    for command in (
        ["cmake", "-S", ROOT / "tests" / "install", "-B", tmp_path, "-G", "Ninja", *find],
        ["cmake", "--build", tmp_path],
        [tmp_path / "consumer"],
    ):
        words = [str(word) for word in command]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    linked = subprocess.run(["ldd", tmp_path / "consumer"], capture_output=True, text=True).stdout
    assert str(PACKAGE / "lib" / f"torch-{ACTIVE}" / "libflash_attention.so") in linked
    assert str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so") in linked
