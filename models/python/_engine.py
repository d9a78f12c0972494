"""Runs a C++ model on the parameters and buffers of a Python module."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

WINDOWS = ("insample_y", "insample_mask", "futr_exog", "hist_exog", "stat_exog")
"""The tensors of a batch of windows, in the order of the C++ arguments."""


@dataclass(frozen=True)
class Setup:
    """The arguments of a C++ model; `options` is a JSON object."""

    model_class: str
    options: str
    output_size: int = 1
    use_flash_attention: bool = False
    flash_block_size: int = 64
    gradient_checkpointing: bool = False

    def build(self) -> Any:
        """Build a C++ model with random weights, drawn from torch's generator."""
        return torch.classes.flash_models.Model(
            self.model_class,
            self.options,
            self.output_size,
            self.use_flash_attention,
            self.flash_block_size,
            self.gradient_checkpointing,
        )


def _has_dtensor(tensors: Sequence[Tensor | None]) -> bool:
    # Where there is a DTensor, its module has been imported.
    module: Any = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    return any(issubclass(kind, module.DTensor) for kind in set(map(type, tensors)))


class Slot(NamedTuple):
    """The location of a tensor: an attribute of a submodule."""

    owner: nn.Module
    attribute: str


class Engine:
    """Runs a C++ model on the tensors of a module.

    Each forward looks up the tensors, so everything works that torch does to a module's parameters:
    optimizers, `.to()`, `load_state_dict`, `torch.func.functional_call`, parametrizations. A copy,
    by `copy` or `pickle`, is an independent engine for the copied module.
    """

    def __init__(self, setup: Setup, native: Any = None) -> None:
        self.setup = setup
        self._native = native
        self._names: list[list[str]] = []
        self._slots: list[Slot] = []
        self._path: list[tuple[nn.Module, str, nn.Module]] = []

    def __reduce__(self) -> tuple[type[Engine], tuple[Setup]]:
        return Engine, (self.setup,)

    @property
    def native(self) -> Any:
        """The C++ model, built on first use without changing the state of torch's generator."""
        if self._native is None:
            with torch.random.fork_rng(devices=[]):
                self._native = self.setup.build()
        return self._native

    def forward(self, module: nn.Module, windows: Mapping[str, Tensor | None]) -> Tensor:
        """Return the raw output; keys of `windows` other than WINDOWS are ignored."""
        tensors, given = self.tensors(module), [windows.get(name) for name in WINDOWS]
        if _has_dtensor(tensors) or _has_dtensor(given):
            return self._forward_of_dtensors(tensors, given, module.training)
        return self.native.forward(tensors, module.training, *given)

    def _forward_of_dtensors(
        self, tensors: list[Tensor], windows: list[Tensor | None], training: bool
    ) -> Tensor:
        from flash_attention.models import _dtensor

        setup = self.setup
        normalizes = any(names[0].endswith(".running_mean") for names in self.names())
        shares_delays = setup.model_class == "Autoformer" and not setup.use_flash_attention
        return _dtensor.forward(
            lambda whole, local: self.native.forward(whole, training, *local),
            setup.model_class,
            tensors,
            windows,
            training=training,
            draws=training or setup.model_class == "Informer",
            whole_batch=training and (normalizes or shares_delays),
        )

    def save(
        self, module: nn.Module, path: str, metadata: dict[str, str], others: dict[str, Tensor]
    ) -> None:
        """Write a file for neuralforecast and `load`; see save_model in checkpoint.h."""
        tensors = self.tensors(module)
        if _has_dtensor(tensors):
            from flash_attention.models import _dtensor

            tensors = _dtensor.whole(tensors)
        self.native.save(path, tensors, metadata, others)

    def names(self) -> list[list[str]]:
        """Return the names of each tensor of the C++ model; several if modules share it."""
        if not self._names:
            self._names = [names for names, *_ in self.native.tensors()]
        return self._names

    def tensors(self, module: nn.Module) -> list[Tensor]:
        """Return the tensors of `module` in the order of the C++ model.

        Raises:
            ValueError: a tensor is missing, or one that submodules must share is not shared.
        """
        is_current = bool(self._slots)
        for parent, key, child in self._path:
            if parent._modules.get(key) is not child:
                is_current = False
                break
        if not is_current:
            self._find_slots(module)
        # In a forecast of a small model, nn.Module.__getattr__ would take a fifth of the time. A
        # parametrization, for example, is no entry of the two dictionaries.
        tensors: list[Tensor] = []
        for owner, attribute in self._slots:
            tensor: Tensor | None = owner._parameters.get(attribute)
            if tensor is None:
                tensor = owner._buffers.get(attribute)
            tensors.append(getattr(owner, attribute) if tensor is None else tensor)
        return tensors

    def _find_slots(self, module: nn.Module) -> None:
        path: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        slots = []
        for first, *others in self.names():
            slots.append(self._slot(module, first, path))
            shared = getattr(*slots[-1])
            for other in others:
                if getattr(*self._slot(module, other, path)) is not shared:
                    raise ValueError(
                        f"{self.setup.model_class}: expected {other} to be the same tensor as "
                        f"{first}, got two; load_state_dict without assign=True keeps them one"
                    )
        self._slots, self._path = slots, list(path.values())

    def _slot(
        self, module: nn.Module, name: str, path: dict[str, tuple[nn.Module, str, nn.Module]]
    ) -> Slot:
        *modules, attribute = name.split(".")
        owner, prefix = module, ""
        for key in modules:
            child = owner._modules.get(key)
            if child is None:
                break
            prefix += key + "."
            path[prefix] = (owner, key, child)
            owner = child
        else:
            # A property may compute it from tensors that this model would ignore.
            computed = isinstance(getattr(type(owner), attribute, None), property)
            own = not computed or parametrize.is_parametrized(owner, attribute)
            if own and isinstance(getattr(owner, attribute, None), Tensor):
                return Slot(owner, attribute)
        raise ValueError(
            f"{self.setup.model_class}: expected the parameter or buffer {name}, got none; was a "
            "submodule replaced?"
        )
