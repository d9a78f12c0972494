"""Makes torch.compile keep equal calls with dropout apart.

A graph with gradients goes through torch's common-subexpression elimination, which knows random
operators from a list of its own and does not look at their tag, `nondeterministic_seeded`: it would
give two equal calls one dropout mask.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import torch

__all__ = ["keep_random_calls_apart"]

MODULE = "torch._functorch.compile_utils"


def _add_operators(module: ModuleType) -> None:
    """Adds the operators of this package with the tag to the list of `module`.

    A torch without the list is left alone: this runs while its compiler is imported, which it must
    not break. The tests of torch.compile say whether that torch looks at the tag.
    """
    listed = getattr(module, "rand_ops", [])
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, operator = name.partition("::")
        if namespace != "flash":
            continue
        packet = getattr(torch.ops.flash, operator)
        random = torch.Tag.nondeterministic_seeded in packet.default.tags
        if random and packet not in listed:
            listed.append(packet)


class _Finder(importlib.abc.MetaPathFinder):
    """Adds them when torch imports the module, whose import takes a third as long as torch's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:  # a search alone, as by importlib.util.find_spec, leaves it
                sys.meta_path.remove(self)
            _add_operators(module)

        setattr(loader, "exec_module", execute_and_add)  # noqa: B010
        return spec


def keep_random_calls_apart() -> None:
    """Adds the operators now if torch's compiler is loaded, or else as soon as it is."""
    if MODULE in sys.modules:
        _add_operators(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())
