"""The classes of the integration guide: configured attention, multi-head attention, memory usage.

They wrap `torch.ops.flash.*`. C++ has the same names in `<flash_attention/flash_attention.h>` and
`<flash_attention/multi_head_attention.h>`.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = [
    "AttentionMode",
    "FlashAttention",
    "FlashAttentionConfig",
    "MemoryUsage",
    "MultiHeadAttention",
    "MultiHeadAttentionConfig",
    "attention_memory",
]


class MemoryUsage(NamedTuple):
    """Bytes that a call allocates beyond its inputs and outputs."""

    forward: int
    backward: int


def attention_memory(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype = torch.float32,
    block_size: int = 64,
    use_simd: bool = True,
    has_bias: bool = False,
    has_softcap: bool = False,
) -> MemoryUsage:
    """Bytes that `torch.ops.flash.attention` allocates beyond its inputs and outputs.

    The result is for query [batch, heads, queries, head_dim], key [batch, heads, keys, head_dim]
    and value [batch, heads, keys, value_dim] in `dtype`, with or without a bias and a softcap, and
    for the kernels and the number of threads that are active now. It grows with the lengths, never
    with their product. Windows, ALiBi and sinks need no memory except a few elements per row for
    the gradients of `alibi_slopes` and `sinks`, which are not counted.

    Raises:
        TypeError: `dtype` is not one that `attention` takes.
        ValueError: a negative size, a tensor of more than 2**47 bytes, which no process can
            address, or a `block_size` below 1.
    """
    usage = torch.ops.flash.attention_memory(
        batch,
        heads,
        queries,
        keys,
        head_dim,
        value_dim,
        dtype,
        block_size,
        use_simd,
        has_bias,
        has_softcap,
    )
    return MemoryUsage(*usage)


@dataclass(frozen=True)
class FlashAttentionConfig:
    """Options of `FlashAttention`.

    Attributes:
        block_size: keys per online-softmax step, at least 1.
        scale: factor on the scores; None means 1/sqrt(D).
        causal: a query attends the keys up to its own position; the queries are at the last
            positions (bottom-right alignment).
        use_simd: False forces the scalar kernels.
        dropout: probability in [0, 1] of dropping an attention weight.
    """

    block_size: int = 64
    scale: float | None = None
    causal: bool = False
    use_simd: bool = True
    dropout: float = 0.0


class FlashAttention:
    """`torch.ops.flash.attention` with fixed options.

    There is no training mode: dropout is applied whenever `config.dropout` is above 0, so make a
    second object without it for evaluation.
    """

    def __init__(self, config: FlashAttentionConfig | None = None) -> None:
        self.config = FlashAttentionConfig() if config is None else config

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """softmax(scale * query key^T) value, exact and differentiable, in O(L) memory.

        Args:
            query: [B, L, D] or [B, H, L, D], of a dtype that `attention` takes, any strides.
            key: [B, S, D] or [B, Hk, S, D] of the same dtype; H is a multiple of Hk.
            value: [B, S, Dv] or [B, Hv, S, Dv] of the same dtype; H is a multiple of Hv.

        Returns:
            [B, L, Dv] or [B, H, L, Dv] in the dtype of the inputs.

        Raises:
            TypeError, ValueError, NotImplementedError: as `flash_attention.attention`, which also
                checks the config.
        """
        config = self.config
        return torch.ops.flash.attention(
            query,
            key,
            value,
            causal=config.causal,
            scale=config.scale,
            dropout=config.dropout,
            block_size=config.block_size,
            use_simd=config.use_simd,
        )

    __call__ = forward

    def memory_usage(self, seq_len: int, d_k: int, d_v: int, batch: int) -> int:
        """Bytes that `forward` allocates beyond its inputs and its output.

        For float64 query and key [batch, seq_len, d_k] and value [batch, seq_len, d_v]: two
        statistics per row, and scratch for each of the threads that are active now. See
        `attention_memory` for other dtypes and shapes, and for the backward.
        """
        config = self.config
        return attention_memory(
            batch, 1, seq_len, seq_len, d_k, d_v, torch.float64, config.block_size, config.use_simd
        ).forward

    def memory_savings_ratio(
        self, seq_len: int, d_k: int = 64, d_v: int = 64, batch: int = 1
    ) -> float:
        """The bytes of the float64 scores of standard attention over those of `forward`.

        That is batch * seq_len^2 * 8 / memory_usage(seq_len, d_k, d_v, batch).
        """
        scores = batch * seq_len * seq_len * 8
        return scores / self.memory_usage(seq_len, d_k, d_v, batch)


class AttentionMode(enum.Enum):
    """The implementation of attention. Both give the same result up to rounding."""

    FLASH = "flash"
    """`torch.ops.flash.attention`, O(L) memory."""
    STANDARD = "standard"
    """`torch.ops.flash.standard_attention`, O(L^2) memory."""


@dataclass(frozen=True)
class MultiHeadAttentionConfig:
    """Shape and behaviour of a `MultiHeadAttention`.

    Attributes:
        d_model: the width of query, key, value and output; a multiple of `num_heads`.
        num_heads: the number of heads, each of width d_model / num_heads.
        dropout: probability in [0, 1] of dropping an attention weight while the module trains.
        causal: a query attends the keys up to its own position; the queries are at the last
            positions (bottom-right alignment).
        mode: the implementation of attention.
        flash_block_size: keys per online-softmax step; `AttentionMode.STANDARD` ignores it.
    """

    d_model: int
    num_heads: int
    dropout: float = 0.0
    causal: bool = False
    mode: AttentionMode = AttentionMode.FLASH
    flash_block_size: int = 64


def _is_dtensor(x: torch.Tensor) -> bool:
    # Where there is a DTensor, its module has been imported.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


class MultiHeadAttention(torch.nn.Module):
    """Multi-head attention (Vaswani et al., arXiv:1706.03762, section 3.2.2) on [B, L, d_model].

    The projections `q_proj`, `k_proj`, `v_proj` and `out_proj` have a bias, and their names are
    those of the C++ module.

    Raises:
        ValueError: `d_model` is not a positive multiple of `num_heads`.
    """

    def __init__(self, config: MultiHeadAttentionConfig) -> None:
        super().__init__()
        d_model, num_heads = config.d_model, config.num_heads
        if num_heads <= 0 or d_model <= 0 or d_model % num_heads != 0:
            raise ValueError(
                "flash::MultiHeadAttention: expected d_model as a positive multiple of num_heads, "
                f"got d_model {d_model} and num_heads {num_heads}"
            )
        self.config = config
        self.q_proj = torch.nn.Linear(d_model, d_model)
        self.k_proj = torch.nn.Linear(d_model, d_model)
        self.v_proj = torch.nn.Linear(d_model, d_model)
        self.out_proj = torch.nn.Linear(d_model, d_model)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            query: [B, L, d_model], in the dtype of the parameters.
            key: [B, S, d_model].
            value: [B, S, d_model].

        Returns:
            [B, L, d_model].

        Raises:
            ValueError: another shape.
            NotImplementedError: DTensors, with AttentionMode.STANDARD and a causal mask or dropout.
        """
        self._check("query", query)
        self._check("key", key)
        self._check("value", value)
        config = self.config
        q = self._split_heads(self.q_proj(query))
        k = self._split_heads(self.k_proj(key))
        v = self._split_heads(self.v_proj(value))
        dropout = config.dropout if self.training else 0.0
        if config.mode is AttentionMode.FLASH:
            heads = torch.ops.flash.attention(
                q, k, v, causal=config.causal, dropout=dropout, block_size=config.flash_block_size
            )
        else:
            if (config.causal or dropout > 0) and _is_dtensor(q):
                raise NotImplementedError(
                    "flash::MultiHeadAttention: expected plain tensors for AttentionMode.STANDARD "
                    "with a causal mask or dropout, got DTensors; AttentionMode.FLASH takes them"
                )
            heads = torch.ops.flash.standard_attention(
                q, k, v, causal=config.causal, dropout=dropout
            )
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        """The config, for `print(module)`."""
        config = self.config
        return (
            f"num_heads={config.num_heads}, dropout={config.dropout}, causal={config.causal}, "
            f"mode={config.mode.value}, flash_block_size={config.flash_block_size}"
        )

    def _check(self, name: str, x: torch.Tensor) -> None:
        if x.dim() != 3 or x.size(2) != self.config.d_model:
            raise ValueError(
                f"flash::MultiHeadAttention: expected {name} as [batch, length, "
                f"{self.config.d_model}], got {list(x.shape)}"
            )

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        # [B, L, d_model] -> [B, H, L, d_model / H], a view: the kernels read any strides.
        heads = self.config.num_heads
        return x.unflatten(2, (heads, self.config.d_model // heads)).transpose(1, 2)
