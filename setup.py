"""Builds the wheel by running CMake on this folder; project metadata is in pyproject.toml.

FLASH_ATTENTION_LIBRARIES names a folder that `cmake --install --component libraries` has filled for
one or more releases of torch; `make` sets it to avoid compiling twice. Without it the libraries are
built here, for the torch that this Python imports.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARIES = os.environ.get("FLASH_ATTENTION_LIBRARIES")


def supported_torch() -> list[str]:
    """The releases that requirements.txt allows: "2.13", ..."""
    text = (ROOT / "requirements.txt").read_text()
    first, end = re.search(r"^torch>=2\.(\d+),<2\.(\d+)", text, re.M).groups()
    return [f"2.{minor}" for minor in range(int(first), int(end))]


def active_torch() -> str:
    """The release of torch to compile against; exits with the commands to run if there is none."""
    supported = supported_torch()
    try:
        import torch

        found = torch.__version__
    except ModuleNotFoundError:
        found = "none"
    release = ".".join(found.split("+")[0].split(".")[:2])
    if release not in supported:
        sys.exit(
            f"flash_attention: expected torch {', '.join(supported)} to compile against, "
            f"got {found}. Run\n"
            f'    python3 -m pip install "torch=={supported[-1]}.*" "setuptools>=77.0.3" wheel\n'
            "    python3 -m pip install --no-build-isolation .\n"
            "(--no-build-isolation, or pip builds where the installed torch cannot be seen)"
        )
    return release


def releases() -> list[str]:
    """The releases of torch that the wheel supports."""
    if LIBRARIES is None:
        return [active_torch()]
    found = [path.name.removeprefix("torch-") for path in Path(LIBRARIES, "lib").glob("torch-*")]
    if not found:
        sys.exit(f"flash_attention: expected libraries in {LIBRARIES}/lib/torch-*, got none")
    return [release for release in supported_torch() if release in found]


def requirement(of: list[str]) -> str:
    """The requirement on torch: the releases that the wheel has libraries for."""
    if len(of) == 1:
        return f"torch=={of[0]}.*"
    return f"torch>={of[0]},<2.{int(of[-1].split('.')[1]) + 1}"


def run_tool(*command: object) -> None:
    try:
        subprocess.run([str(word) for word in command], check=True)
    except FileNotFoundError:
        sys.exit(
            f"flash_attention: expected {command[0]} on PATH, got none. Run\n"
            "    python3 -m pip install cmake ninja"
        )


class CMakeBuild(build_ext):
    """Copies or builds the libraries, headers and CMake files into the tree of the wheel."""

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.build_lib).resolve() / "flash_attention"
        if LIBRARIES is not None:
            for folder in ("lib", "include"):
                shutil.copytree(Path(LIBRARIES, folder), package / folder, dirs_exist_ok=True)
            return
        build = Path(self.build_temp).resolve()
        if not (build / "build.ninja").is_file():
            self.configure(build)
        run_tool("cmake", "--build", build)
        run_tool("cmake", "--install", build, "--component", "libraries", "--prefix", package)

    def configure(self, build: Path) -> None:
        import torch

        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_PREFIX_PATH": torch.utils.cmake_prefix_path,
            "FLASH_ATTENTION_BUILD_TESTS": "OFF",
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        run_tool("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines)


class PlatformWheel(bdist_wheel):
    """Tags the wheel for every Python: its libraries do not depend on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def project_version() -> str:
    """The version in the project() line of CMakeLists.txt."""
    return re.search(
        r"^project\(\w+ VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.M
    )[1]


setup(
    version=project_version(),
    install_requires=[requirement(releases())],
    ext_modules=[Extension("flash_attention.lib.libflash_attention", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
    # The default, build/, is the CMake build directory of `make`.
    options={"build": {"build_base": "build/python"}},
)
