"""`import flash_attn` on a machine without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from flash_attention.flash_attn_interface import dense, kvcache, padding, rotary, varlen

__all__ = ["install", "uninstall"]

VERSION = "2.8.3"  # of flash-attn, whose functions these are

_FUNCTIONS = {
    function.__name__: function
    for function in (
        dense.flash_attn_func,
        dense.flash_attn_kvpacked_func,
        dense.flash_attn_qkvpacked_func,
        varlen.flash_attn_varlen_func,
        varlen.flash_attn_varlen_kvpacked_func,
        varlen.flash_attn_varlen_qkvpacked_func,
        kvcache.flash_attn_with_kvcache,
    )
}
_MODULES: dict[str, dict[str, object]] = {
    "flash_attn": {"__version__": VERSION, **_FUNCTIONS},
    "flash_attn.bert_padding": {name: getattr(padding, name) for name in padding.__all__},
    "flash_attn.flash_attn_interface": dict(_FUNCTIONS),
    "flash_attn.layers": {},
    "flash_attn.layers.rotary": {
        "apply_rotary_emb": rotary.apply_rotary_emb,
        "apply_rotary_emb_func": rotary.apply_rotary_emb,  # its name in flash-attn 1
    },
}
_PACKAGES = ("flash_attn", "flash_attn.layers")
_lock = threading.Lock()


class _Distribution(importlib.metadata.Distribution):
    """What importlib.metadata says of flash-attn while it is served."""

    def read_text(self, filename: str) -> str | None:
        texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {VERSION}\n",
            "top_level.txt": "flash_attn\n",
        }
        return texts.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> NoReturn:
        raise FileNotFoundError(f"flash_attn: expected no file to be needed, got {path}")


class _Finder(importlib.metadata.DistributionFinder):
    """Finds the distribution; the modules are in sys.modules."""

    def find_spec(self, *arguments: object) -> ModuleSpec | None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        name = None if context is None else context.name
        wanted = name is None or name.lower().replace("-", "_") == "flash_attn"
        return [_Distribution()] if wanted else []


_finder = _Finder()


def install() -> None:
    """Serve these functions as `flash_attn`, to code that imports it, until `uninstall`.

    `flash_attn`, `flash_attn.flash_attn_interface`, `flash_attn.bert_padding` and
    `flash_attn.layers.rotary` can then be imported, in this process and in every thread, and
    `importlib.metadata.version("flash_attn")` is 2.8.3. Other modules of flash-attn are not there.
    A second call has no effect.

    Raises:
        RuntimeError: a flash_attn is installed or imported already.

    >>> install()
    >>> from flash_attn import flash_attn_func
    >>> q, k, v = (torch.randn(2, 10, 4, 16) for _ in range(3))
    >>> flash_attn_func(q, k, v, causal=True).shape
    torch.Size([2, 10, 4, 16])
    >>> uninstall()
    """
    with _lock:
        if _finder in sys.meta_path:
            return
        spec = importlib.util.find_spec("flash_attn")
        if spec is not None:
            raise RuntimeError(
                f"flash_attn_interface.install: expected no flash_attn, got one from "
                f"{spec.origin or 'sys.modules'}; uninstall it, or import "
                "flash_attention.flash_attn_interface instead"
            )
        for name, contents in _MODULES.items():
            module = ModuleType(name, f"{name}, served by flash_attention.")
            module.__spec__ = ModuleSpec(name, None, is_package=name in _PACKAGES)
            module.__package__ = name if name in _PACKAGES else name.rpartition(".")[0]
            if name in _PACKAGES:
                module.__path__ = []
            vars(module).update(contents)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        sys.meta_path.append(_finder)


def uninstall() -> None:
    """End `install`. Names that were imported meanwhile keep working. No effect without it."""
    with _lock:
        if _finder not in sys.meta_path:
            return
        sys.meta_path.remove(_finder)
        for name in _MODULES:
            sys.modules.pop(name, None)
