"""The name for `attn_implementation`."""

from __future__ import annotations

import importlib

from flash_attention.transformers.forward import attention_forward
from flash_attention.transformers.masks import attention_mask, check_patterns

__all__ = ["NAME", "register"]

# Without "flash": transformers takes every name that has it for kernels of a GPU.
NAME = "cpu_attention"


def register() -> str:
    """Make this package an attention implementation of transformers, for the rest of the process.

    Registers the attention function together with its mask function, without which transformers
    would silently pass no mask. A second call changes nothing.

    Returns:
        "cpu_attention", for `attn_implementation=` or `model.set_attn_implementation`.

    Raises:
        ImportError: transformers is not installed, or is another version without these interfaces.
        RuntimeError: the masks of the installed transformers do not mean what they do in 5.24.
    """
    try:
        package = importlib.import_module("transformers")
        attention, masks = package.AttentionInterface, package.AttentionMaskInterface
        check_patterns()
    except (ImportError, AttributeError, TypeError) as error:
        raise ImportError(
            "flash_attention.transformers.register: expected transformers 5.24, got "
            f"{error!r}; run python -m pip install 'transformers==5.24.*'"
        ) from error
    masks.register(NAME, attention_mask)
    attention.register(NAME, attention_forward)
    return NAME
