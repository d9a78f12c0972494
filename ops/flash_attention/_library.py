"""Loads the compiled libraries, which register `torch.ops.flash.*` and what models are made of."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _reinstall_command() -> str:
    return f"{sys.executable} -m pip install --no-build-isolation --force-reinstall --no-deps ."


def load(name: str = "libflash_attention.so") -> None:
    """Check torch, then load a library of the package.

    A library is compiled against one release of torch and calls its C++ interface, which changes
    between releases: loading it beside another would end in unresolved symbols or a crash.

    Raises:
        ImportError: torch is missing or not the release the library was compiled against, or the
            library is missing. The text carries the command that repairs it.
    """
    try:
        from flash_attention._build_config import TORCH_VERSION
    except ModuleNotFoundError:
        raise ImportError(
            f"flash_attention: expected a compiled package, got {_PACKAGE} without "
            "_build_config.py; in a clone of the repository run\n"
            f"    {_reinstall_command()}"
        ) from None

    install_torch = f"    {sys.executable} -m pip install torch=={TORCH_VERSION}"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"flash_attention: expected torch {TORCH_VERSION}, got none; run\n{install_torch}"
        ) from None
    if torch.__version__.split("+")[0] != TORCH_VERSION:
        raise ImportError(
            f"flash_attention: compiled against torch {TORCH_VERSION}, got torch "
            f"{torch.__version__}; run\n{install_torch}"
        )

    library = _PACKAGE / "lib" / name
    if not library.is_file():
        raise ImportError(
            f"flash_attention: expected the compiled library at {library}, got no such file; in a "
            f"clone of the repository run\n    {_reinstall_command()}"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"flash_attention: expected {library} to load, got '{error}'; in a clone of the "
            f"repository run\n    {_reinstall_command()}"
        ) from error
