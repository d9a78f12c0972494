"""flash_attn_with_kvcache: append to a cache of keys and values, and attend it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attention.flash_attn_interface.arguments import (
    Shapes,
    Window,
    integers,
    score_options,
)
from flash_attention.flash_attn_interface.dense import attend, attend_with_lse
from flash_attention.flash_attn_interface.pages import Pages
from flash_attention.flash_attn_interface.rotary import check_positions, check_table, rotated
from flash_attention.flash_attn_interface.varlen import options_of_sequence

__all__ = ["flash_attn_with_kvcache"]

FUNCTION = "flash_attn_with_kvcache"


class _Sequences:
    """Which rows of the cache the sequences of a call have: begin[n] up to end[n] of its own."""

    def __init__(
        self,
        shapes: Shapes,
        caches: tuple[Tensor, Tensor],
        cache_seqlens: int | Tensor | None,
        cache_batch_idx: Tensor | None,
        cache_leftpad: Tensor | None,
        block_table: Tensor | None,
        added: int,
    ) -> None:
        batch, (count, rows) = shapes["batch"], caches[0].shape[:2]
        self.caches, self.added = caches, added
        self.pages = None
        if block_table is not None:
            if cache_batch_idx is not None:
                raise ValueError(
                    f"{FUNCTION}: expected cache_batch_idx or block_table, got both; the table "
                    "selects the blocks of each sequence"
                )
            self.pages = Pages(FUNCTION, block_table, batch, count, rows)
            rows = self.pages.capacity
        self.slots = None
        if cache_batch_idx is not None:
            self.slots = integers(FUNCTION, "cache_batch_idx", cache_batch_idx, batch)
            if min(self.slots, default=0) < 0 or max(self.slots, default=-1) >= count:
                raise ValueError(
                    f"{FUNCTION}: expected cache_batch_idx from 0 to {count - 1}, got {self.slots}"
                )
        elif block_table is None and count < batch:
            raise ValueError(
                f"{FUNCTION}: expected k_cache of {batch} sequences or more, as q has, got {count}"
            )
        if cache_seqlens is None:
            lengths = [rows] * batch
        elif isinstance(cache_seqlens, int):
            lengths = [cache_seqlens] * batch
        else:
            lengths = integers(FUNCTION, "cache_seqlens", cache_seqlens, batch)
        self.begin = [0] * batch
        if cache_leftpad is not None:
            self.begin = integers(FUNCTION, "cache_leftpad", cache_leftpad, batch)
        for first, length in zip(self.begin, lengths, strict=True):
            if not 0 <= first <= length or length + added > rows:
                raise ValueError(
                    f"{FUNCTION}: expected cache_seqlens from cache_leftpad = {first} to "
                    f"{rows - added}, which leaves {added} of the {rows} rows of a sequence for k, "
                    f"got {length}"
                )
        self.lengths = lengths
        self.end = [length + added for length in lengths]
        if self.pages is not None:
            self.pages.check(self.end)
            blocks = -(-max(self.end, default=0) // self.pages.page)
            self.buffers = [cache.new_empty(blocks, *cache.shape[1:]) for cache in caches]

    def positions(self, count: int, step: int = 1) -> Tensor:
        """int64 [batch, count]: the first positions after what the cache holds."""
        return torch.tensor(self.lengths).unsqueeze(1) + step * torch.arange(count)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Writes k and v [batch, added, heads, width] after what the cache holds."""
        positions = self.positions(self.added)
        if self.pages is not None:
            index = self.pages.index(positions)
        else:
            slots = range(len(self.lengths)) if self.slots is None else self.slots
            index = torch.tensor(list(slots)).unsqueeze(1).expand_as(positions), positions
        for cache, new in zip(self.caches, (k, v), strict=True):
            cache[index] = new

    def rows(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values of sequence n, [rows, heads, width], until the next call."""
        own = slice(self.begin[n], self.end[n])
        if self.pages is not None:
            key, value = (
                self.pages.rows(cache, n, self.end[n], buffer)
                for cache, buffer in zip(self.caches, self.buffers, strict=True)
            )
        else:
            slot = n if self.slots is None else self.slots[n]
            key, value = (cache[slot] for cache in self.caches)
        return key[own], value[own]

    def attend(
        self, q: Tensor, options: dict[str, Any], with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """out and softmax_lse of q [batch, seqlen_q, nheads, headdim]."""
        call = attend_with_lse if with_lse else _without_lse
        batch, queries = q.shape[:2]
        in_order = self.pages is None and self.slots is None and not any(self.begin)
        if in_order or batch == 0:
            longest = max(self.end, default=0)
            key, value = (cache[:batch, :longest] for cache in self.caches)
            if min(self.end, default=0) == longest:
                return call(q, key, value, options)
            # The position of a query can say where its keys end.
            unordered = options["window"] == (-1, -1) and options["alibi_slopes"] is None
            if options["causal"] or queries == 1 or unordered:
                last = torch.tensor(self.end).view(-1, 1, 1) - 1
                before = torch.arange(queries - 1, -1, -1) if options["causal"] else 0
                at = {"causal": True, "query_positions": last - before}
                return call(q, key, value, options | at)
        each = []
        for n in range(batch):
            key, value = (rows.unsqueeze(0) for rows in self.rows(n))
            each.append(call(q[n : n + 1], key, value, options_of_sequence(options, n)))
        lses = [lse for _, lse in each if lse is not None]
        return torch.cat([out for out, _ in each]), torch.cat(lses) if lses else None


def _without_lse(
    q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    return attend(q, k, v, options), None


def _check_new(shapes: Shapes, q: Tensor, k: Tensor | None, v: Tensor | None) -> int:
    """The number of rows that k and v append."""
    if k is None and v is None:
        return 0
    if k is None or v is None:
        found = "v" if k is None else "k"
        raise ValueError(f"{FUNCTION}: expected k and v, or neither, got {found} alone")
    shapes.check("k", k, "batch", "seqlen_new", "nheads_k", "headdim")
    shapes.check("v", v, "batch", "seqlen_new", "nheads_k", "headdim_v")
    shapes.check_dtype(q, k=k, v=v)
    return shapes["seqlen_new"]


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """flash-attn's `flash_attn_with_kvcache`: append k and v to the caches, and attend them.

    In masks and slopes, seqlen_k is the number of rows of a sequence that hold keys: from its
    leftpad to its length, and the new ones.

    Args:
        q: [batch, seqlen_q, nheads, headdim], float32, float64, bfloat16 or float16.
        k_cache: [batch_cache, seqlen_cache, nheads_k, headdim], dtype of `q`, any strides; with
            `block_table`, [num_blocks, page_block_size, nheads_k, headdim].
        v_cache: like `k_cache`, with a headdim of its own.
        k: [batch, seqlen_new, nheads_k, headdim], dtype of `q`: written to `k_cache` from row
            cache_seqlens on, before q attends it. None appends nothing.
        v: the same for `v_cache`.
        rotary_cos, rotary_sin: [seqlen_rotary, rotary_dim / 2], floating: rotate k at positions
            cache_seqlens, cache_seqlens + 1, ...; and q at the same with `causal` or a window, and
            otherwise at cache_seqlens. They need k.
        cache_seqlens: int, or int32 or int64 [batch]: the rows of the cache that are in use. None
            means all; with k it is required.
        cache_batch_idx: int32 or int64 [batch]: the sequence of the cache that each one of q has.
            None means 0, 1, ...
        cache_leftpad: int32 or int64 [batch]: the first row of each sequence. None means 0.
        block_table: int32 or int64 [batch, max_blocks]: rows m * page_block_size ... of sequence n
            are those of block block_table[n, m]. The blocks may have any size. A sequence whose
            blocks do not adjoin is copied out of them.
        softmax_scale, causal, window_size, softcap, alibi_slopes: as in `flash_attn_func`.
        rotary_interleaved: as `interleaved` of `apply_rotary_emb`.
        num_splits: no effect; the lengths decide how keys are split over the threads.
        return_softmax_lse: also return softmax_lse.

    Returns:
        out [batch, seqlen_q, nheads, headdim_v]. With `return_softmax_lse`, (out, softmax_lse), as
        `flash_attn_func` has it.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, as the message says; rows, sequences, blocks
            or positions that do not exist. Nothing is written then.
        NotImplementedError: a tensor requires a gradient while gradients are recorded.

    >>> k_cache, v_cache = torch.zeros(2, 100, 2, 16), torch.zeros(2, 100, 2, 16)
    >>> q, k, v = torch.randn(2, 1, 4, 16), torch.randn(2, 1, 2, 16), torch.randn(2, 1, 2, 16)
    >>> seqlens = torch.tensor([30, 40], dtype=torch.int32)
    >>> flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=seqlens, causal=True).shape
    torch.Size([2, 1, 4, 16])
    >>> torch.equal(v_cache[1, 40], v[1, 0])
    True
    """
    shapes = Shapes(FUNCTION)
    rows = ("batch_cache", "seqlen_cache")
    if block_table is not None:
        rows = ("num_blocks", "page_block_size")
    shapes.check("q", q, "batch", "seqlen_q", "nheads", "headdim")
    shapes.check("k_cache", k_cache, *rows, "nheads_k", "headdim")
    shapes.check("v_cache", v_cache, *rows, "nheads_k", "headdim_v")
    shapes.check_dtype(q, k_cache=k_cache, v_cache=v_cache)
    shapes.check_heads("k_cache")
    added = _check_new(shapes, q, k, v)
    if k is not None and cache_seqlens is None:
        raise ValueError(f"{FUNCTION}: expected cache_seqlens with k, where to write it, got None")
    if (rotary_cos is None) != (rotary_sin is None) or (rotary_cos is not None and k is None):
        raise ValueError(f"{FUNCTION}: expected rotary_cos and rotary_sin with k, or neither")
    given = (q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, alibi_slopes)
    tensors = [tensor for tensor in given if tensor is not None]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise NotImplementedError(
            f"{FUNCTION}: expected tensors on the CPU, got {[str(t.device) for t in tensors]}"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(
            f"{FUNCTION}: expected tensors without gradients, got one that requires a gradient; "
            "call it under torch.no_grad()"
        )
    options = score_options(
        shapes,
        q,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    sequences = _Sequences(
        shapes,
        (k_cache, v_cache),
        cache_seqlens,
        cache_batch_idx,
        cache_leftpad,
        block_table,
        added,
    )
    if rotary_cos is not None and rotary_sin is not None and k is not None:
        check_table(shapes, "rotary_cos", rotary_cos, "rotary_sin", rotary_sin)
        # flash-attn takes all queries without an order of keys as one position.
        step = 1 if causal or options["window"] != (-1, -1) else 0
        at_query, at_key = sequences.positions(q.size(1), step), sequences.positions(added)
        table = (rotary_cos, rotary_sin)
        count = max(added, q.size(1) if step else min(q.size(1), 1))
        counts = [count] * len(sequences.lengths)
        check_positions(FUNCTION, sequences.lengths, counts, rotary_cos.size(0))
        q = rotated(q, *table, at_query, rotary_interleaved)
        k = rotated(k, *table, at_key, rotary_interleaved)
    if k is not None and v is not None:
        sequences.append(k, v)
    out, lse = sequences.attend(q, options, return_softmax_lse)
    return out if lse is None else (out, lse)
