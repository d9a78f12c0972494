"""Writes the installed package in the layout of Hugging Face's package `kernels`.

    python packaging/write_kernel.py dist/kernels/flash-attention

The folder then has build/torch213-cxx11-cpu-x86_64-linux, and the same for each other release of
torch that the package has libraries for: the operator and its Python modules, without the models,
the headers and the files for CMake.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
from pathlib import Path

import flash_attention
from flash_attention import _library

PACKAGE = Path(flash_attention.__file__).resolve().parent
# Of the package, what no function of the operator needs.
LEFT_OUT = ("models", "train", "include", "lib", "__pycache__")
# What `kernels` and transformers ask for as `version`: it grows when calls of the kernel change.
KERNEL_VERSION = 1


def variant_of(release: str) -> str:
    """The name of the folder for a release of torch, "2.13"."""
    return f"torch{release.replace('.', '')}-cxx11-cpu-{platform.machine()}-linux"


def write_variant(folder: Path, release: str) -> None:
    """Writes the package with its libraries for one release of torch."""
    package, libraries = folder / "flash_attention", Path("lib", f"torch-{release}")
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (package / libraries).mkdir(parents=True)
    for library in (Path("lib", "libflash_kernels.so"), libraries / "libflash_attention.so"):
        shutil.copy(PACKAGE / library, package / library)
    shutil.copy(Path(__file__).with_name("kernel_module.py"), folder / "__init__.py")

    version = flash_attention.__version__
    about = folder / f"flash_attention-{version}.dist-info"
    about.mkdir()
    installed = importlib.metadata.distribution("flash_attention")
    (about / "METADATA").write_text(installed.read_text("METADATA") or "")
    metadata = {
        "id": f"_flash_attention_cpu_{version.replace('.', '_')}",
        "name": "flash-attention",
        "version": KERNEL_VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    shutil.copy(Path(__file__).parents[1] / "LICENSE", folder)


def write_kernel(folder: Path) -> list[Path]:
    """Writes every variant; returns their folders."""
    build = folder / "build"
    shutil.rmtree(build, ignore_errors=True)
    variants = {release: build / variant_of(release) for release in _library.releases()}
    for release, variant in variants.items():
        variant.mkdir(parents=True)
        write_variant(variant, release)
    return list(variants.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The installed package as a kernel of `kernels`.")
    parser.add_argument("folder", type=Path, help="of the kernel; its build/ is replaced")
    print(*write_kernel(parser.parse_args().folder), sep="\n")
