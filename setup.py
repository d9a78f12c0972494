"""Builds the wheel by running CMake on this folder; project metadata is in pyproject.toml.

FLASH_ATTENTION_BUILD_DIR names a CMake build directory to use, so that `make`, which has compiled
everything there, does not compile it twice. Without it the operator is built in setuptools' own
temporary directory.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def required_torch() -> str:
    """The version that requirements.txt pins."""
    return re.search(r"^torch==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M)[1]


def check_torch() -> None:
    """Stop unless the torch to compile against is here, with the commands that bring it."""
    expected = required_torch()
    try:
        import torch

        found = torch.__version__
    except ModuleNotFoundError:
        found = "none"
    if found.split("+")[0] != expected:
        sys.exit(
            f"flash_attention: expected torch {expected} to compile against, got {found}. Run\n"
            f"    python3 -m pip install torch=={expected} -r requirements-dev.txt\n"
            "    python3 -m pip install --no-build-isolation .\n"
            "(--no-build-isolation, or pip builds where the installed torch cannot be seen)"
        )


def run_tool(*command: object) -> None:
    try:
        subprocess.run([str(word) for word in command], check=True)
    except FileNotFoundError:
        sys.exit(
            f"flash_attention: expected {command[0]} on PATH, got none. Run\n"
            "    python3 -m pip install cmake ninja"
        )


class CMakeBuild(build_ext):
    """Builds the two libraries and installs them where the wheel is put together."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(os.environ.get("FLASH_ATTENTION_BUILD_DIR") or self.build_temp).resolve()
        if not (build / "build.ninja").is_file():
            self.configure(build)
        run_tool("cmake", "--build", build, "--target", "flash_attention", "flash_models")
        wheel = Path(self.build_lib).resolve()
        run_tool("cmake", "--install", build, "--component", "python", "--prefix", wheel)

    def configure(self, build: Path) -> None:
        import torch

        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_PREFIX_PATH": torch.utils.cmake_prefix_path,
            "FLASH_ATTENTION_BUILD_MODELS": "ON",
            "FLASH_ATTENTION_BUILD_TRAIN": "OFF",
            "FLASH_ATTENTION_BUILD_TESTS": "OFF",
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        run_tool("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines)


class PlatformWheel(bdist_wheel):
    """Tags the wheel for every Python: the library in it does not know which one loads it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def project_version() -> str:
    """The version in the project() line of CMakeLists.txt."""
    return re.search(
        r"^project\(\w+ VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.M
    )[1]


check_torch()
setup(
    version=project_version(),
    install_requires=[f"torch=={required_torch()}"],
    ext_modules=[Extension("flash_attention.lib.libflash_attention", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
    # setuptools' default is build/, which is the CMake build directory of `make`.
    options={"build": {"build_base": "build/python"}},
)
