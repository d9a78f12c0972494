"""Rotary position embedding, as flash-attn applies it.

Source: Su et al., RoFormer (arXiv:2104.09864), section 3.4.2, equation 34; the pairs of halves that
`interleaved=False` rotates are those of GPT-NeoX.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flash_attention.flash_attn_interface.arguments import (
    Shapes,
    compute_dtype,
    integers,
    lengths_between,
)

__all__ = ["apply_rotary_emb", "check_positions", "check_table", "rotated"]


def check_table(shapes: Shapes, cos_name: str, cos: Tensor, sin_name: str, sin: Tensor) -> None:
    """Raises TypeError or ValueError unless cos and sin are floating [rows, rotary_dim / 2]."""
    shapes.check(cos_name, cos, "seqlen_rotary", "rotary_dim / 2")
    shapes.check(sin_name, sin, "seqlen_rotary", "rotary_dim / 2")
    for name, table in ((cos_name, cos), (sin_name, sin)):
        if not table.is_floating_point():
            raise TypeError(f"{shapes.function}: expected floating {name}, got {table.dtype}")
    if 2 * shapes["rotary_dim / 2"] > shapes["headdim"]:
        raise ValueError(
            f"{shapes.function}: expected {cos_name} for at most headdim = {shapes['headdim']} "
            f"elements, got rotary_dim = {2 * shapes['rotary_dim / 2']}"
        )


def check_positions(function: str, first: Sequence[int], counts: Sequence[int], rows: int) -> None:
    """Raises ValueError unless there are `rows` for counts[n] positions from first[n] on."""
    ranges = [(begin, begin + n - 1) for begin, n in zip(first, counts, strict=True) if n > 0]
    if not ranges:
        return
    least, most = min(begin for begin, _ in ranges), max(end for _, end in ranges)
    if least < 0 or most >= rows:
        raise ValueError(
            f"{function}: expected cos and sin for positions {least} to {most}, got {rows} rows"
        )


def rotated(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """x [.., heads, headdim] with the rotation of row positions[..] of cos and sin."""
    wide = compute_dtype(x.dtype)
    cos, sin = (table[positions].unsqueeze(-2).to(wide) for table in (cos, sin))
    width = 2 * cos.size(-1)
    turning = x[..., :width].to(wide)
    if interleaved:
        one, other = turning.unflatten(-1, (-1, 2)).unbind(-1)
    else:
        one, other = turning.chunk(2, -1)
    turned = one * cos - other * sin, one * sin + other * cos
    joined = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([joined.to(x.dtype), x[..., width:]], -1)


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """flash-attn's `flash_attn.layers.rotary.apply_rotary_emb`.

    Args:
        x: [batch, seqlen, nheads, headdim], or [total, nheads, headdim] with `cu_seqlens`, in
            floating point. The 16-bit types are computed in float32.
        cos, sin: [seqlen_rotary, rotary_dim / 2]; the first rotary_dim elements of a head rotate.
        interleaved: rotate elements 2 i and 2 i + 1 together, instead of i and i + rotary_dim / 2.
        inplace: write the result to `x`, too.
        seqlen_offsets: the position of the first row, an int or int32 [batch].
        cu_seqlens: int32 or int64 [batch + 1], from 0 to total: the offsets of packed sequences.
        max_seqlen: the longest length; no effect.

    Returns:
        The rotated x, of its shape and dtype; differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, or a position that cos and sin do not have.
    """
    shapes = Shapes("apply_rotary_emb")
    rows = ("batch", "seqlen") if cu_seqlens is None else ("total",)
    shapes.check("x", x, *rows, "nheads", "headdim")
    shapes.check_dtype(x, "x")
    check_table(shapes, "cos", cos, "sin", sin)
    if cu_seqlens is None:
        lengths = [x.size(1)] * x.size(0)
    else:
        shapes.check("cu_seqlens", cu_seqlens, "batch + 1")
        count = shapes["batch + 1"] - 1
        lengths = lengths_between(shapes.function, "cu_seqlens", cu_seqlens, count, x.size(0))
    if isinstance(seqlen_offsets, int):
        offsets = [seqlen_offsets] * len(lengths)
    else:
        offsets = integers(shapes.function, "seqlen_offsets", seqlen_offsets, len(lengths))
    check_positions(shapes.function, offsets, lengths, cos.size(0))
    each = [torch.arange(n) + offset for n, offset in zip(lengths, offsets, strict=True)]
    positions = torch.cat([torch.arange(0), *each]).view(x.shape[:-2])
    result = rotated(x, cos, sin, positions, interleaved)
    return x.copy_(result) if inplace else result
