"""Loads the compiled libraries, which register `torch.ops.flash.*` and the models' classes."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def cmake_prefix_path() -> str:
    """The directory to add to CMAKE_PREFIX_PATH for `find_package(FlashAttention)`."""
    return str(_PACKAGE / "lib" / "cmake")


def releases() -> list[str]:
    """The releases of torch that the package has libraries for, as "2.13", oldest first."""
    names = [path.name.removeprefix("torch-") for path in (_PACKAGE / "lib").glob("torch-*")]
    return sorted(names, key=lambda name: tuple(map(int, name.split("."))))


def _reinstall_command() -> str:
    return f"{sys.executable} -m pip install --no-build-isolation --force-reinstall --no-deps ."


def path_of(name: str) -> Path:
    """The path of the library `name` for the installed release of torch.

    A library is compiled against one release of torch and calls its C++ interface, which changes
    between releases: with another release it would have unresolved symbols or crash.

    Raises:
        ImportError: torch is not installed, the package has no library for its release, or the
            library is missing. The message gives the command that repairs it.
    """
    known = releases()
    if not known:
        raise ImportError(
            f"flash_attention: expected a compiled package, got {_PACKAGE} without libraries; in a "
            f"clone of the repository run\n    {_reinstall_command()}"
        )
    expected = f"torch {', '.join(known)}"
    install_torch = f"    {sys.executable} -m pip install 'torch=={known[-1]}.*'"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"flash_attention: expected {expected}, got none; run\n{install_torch}"
        ) from None
    release = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    if release not in known:
        raise ImportError(
            f"flash_attention: compiled for {expected}, got torch {torch.__version__}; run\n"
            f"{install_torch}\nor, in a clone of the repository, compile it for this one:\n"
            f"    {_reinstall_command()}"
        )
    library = _PACKAGE / "lib" / f"torch-{release}" / name
    if not library.is_file():
        raise ImportError(
            f"flash_attention: expected the compiled library at {library}, got no such file; in a "
            f"clone of the repository run\n    {_reinstall_command()}"
        )
    return library


def load(name: str = "libflash_attention.so") -> None:
    """Load the library `name` of the package.

    Raises:
        ImportError: as `path_of`, or the library fails to load.
    """
    library = path_of(name)
    import torch

    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"flash_attention: expected {library} to load, got '{error}'; in a clone of the "
            f"repository run\n    {_reinstall_command()}"
        ) from error
