"""Exact attention for PyTorch on the CPU, in O(N) memory, forward and backward.

Importing this package loads the compiled library, which registers `torch.ops.flash.*`. The
functions here call these operators and add types and documentation.

>>> import torch
>>> import flash_attention
>>> q, k, v = (torch.randn(2, 8, 100, 64, requires_grad=True) for _ in range(3))
>>> flash_attention.attention(q, k, v, causal=True).sum().backward()
>>> q.grad.shape
torch.Size([2, 8, 100, 64])
"""

import importlib.metadata
from typing import TYPE_CHECKING

from flash_attention import _library

_library.load()  # before the imports below, which use operators that the library registers

from flash_attention import _compile, flash_attn_interface, torch_registry  # noqa: E402, F401
from flash_attention.cache import KeyValueCache  # noqa: E402
from flash_attention.functional import (  # noqa: E402
    BuildInfo,
    InstructionSet,
    attention,
    attention_with_lse,
    build_info,
    dropout_mask,
    standard_attention,
    varlen_attention,
)
from flash_attention.nn import (  # noqa: E402
    AttentionMode,
    FlashAttention,
    FlashAttentionConfig,
    MemoryUsage,
    MultiHeadAttention,
    MultiHeadAttentionConfig,
    attention_memory,
)
from flash_attention.sdpa import (  # noqa: E402
    SdpaReplacement,
    replace_sdpa,
    scaled_dot_product_attention,
)

_compile.keep_random_calls_apart()

__version__ = importlib.metadata.version("flash_attention")
# For CMAKE_PREFIX_PATH: find_package(FlashAttention) then finds this package.
cmake_prefix_path = _library.cmake_prefix_path()

__all__ = [
    "AttentionMode",
    "BuildInfo",
    "FlashAttention",
    "FlashAttentionConfig",
    "InstructionSet",
    "KeyValueCache",
    "MemoryUsage",
    "MultiHeadAttention",
    "MultiHeadAttentionConfig",
    "SdpaReplacement",
    "__version__",
    "attention",
    "attention_memory",
    "attention_with_lse",
    "build_info",
    "cmake_prefix_path",
    "dropout_mask",
    "flash_attn_interface",
    "flex_attention",
    "replace_sdpa",
    "scaled_dot_product_attention",
    "standard_attention",
    "varlen_attention",
]

if TYPE_CHECKING:
    from flash_attention.flex import flex_attention


def __getattr__(name: str) -> object:
    # torch's module for FlexAttention takes longer to import than all of this package.
    if name == "flex_attention":
        from flash_attention.flex import flex_attention

        return flex_attention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
