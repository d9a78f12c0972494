"""What flash-attn's functions refuse, and that the message names the argument."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_attention import flash_attn_interface as fa
from torch import Tensor

from support.problems import DTYPES_16BIT, dtype_name

pytestmark = pytest.mark.once


def starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


Q, K, ROWS, KEY_ROWS = zeros(2, 3, 4, 8), zeros(2, 5, 2, 8), zeros(6, 4, 8), zeros(7, 2, 8)
CUT_Q, CUT_K = starts((2, 4)), starts((3, 4))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"q": None}, TypeError, "expected q to be a tensor, got None"),
        ({"q": zeros(3, 4, 8)}, ValueError, r"q \[batch, seqlen_q, nheads, headdim\], got \[3, 4"),
        ({"k": zeros(2, 5, 2, 7)}, ValueError, r"k \[batch = 2, .*headdim = 8\], got \[2, 5, 2, 7"),
        ({"v": zeros(2, 6, 2, 8)}, ValueError, r"v \[.*seqlen_k = 5.*got \[2, 6, 2, 8\]"),
        ({"v": zeros(2, 5, 4, 8)}, ValueError, r"v \[.*nheads_k = 2.*got \[2, 5, 4, 8\]"),
        ({"k": zeros(2, 5, 3, 8), "v": zeros(2, 5, 3, 8)}, ValueError, "4 heads of q.*got 3"),
        ({"k": zeros(2, 5, 0, 8), "v": zeros(2, 5, 0, 8)}, ValueError, "4 heads of q.*got 0"),
        ({"q": Q.long()}, TypeError, "q of float32.*got torch.int64"),
        ({"v": K.double()}, TypeError, "v of torch.float32, the dtype of q, got torch.float64"),
        ({"window_size": 3}, ValueError, "window_size.*got 3"),
        ({"window_size": (1, 2, 3)}, ValueError, "window_size.*got"),
        ({"softcap": math.nan}, ValueError, "finite softcap, got nan"),
        ({"softcap": math.inf}, ValueError, "finite softcap, got inf"),
        ({"dropout_p": 1.5}, ValueError, "dropout"),
        ({"alibi_slopes": zeros(3)}, ValueError, r"alibi_slopes \[nheads = 4\], got \[3\]"),
        ({"alibi_slopes": zeros(3, 4)}, ValueError, r"alibi_slopes \[batch = 2, nheads = 4\], got"),
        ({"alibi_slopes": zeros(4).double()}, TypeError, "alibi_slopes of float32"),
        ({"k": K.to("meta")}, ValueError, "device of query, cpu, got key on meta"),
    ],
)
def test_invalid_batches_are_refused(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments = {"q": Q, "k": K, "v": K}
    fa.flash_attn_func(**arguments)
    with pytest.raises(error, match=text):
        fa.flash_attn_func(**arguments | changes)


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"q": Q}, ValueError, r"q \[total_q, nheads, headdim\], got \[2, 3, 4, 8\]"),
        ({"v": zeros(6, 2, 8)}, ValueError, r"v \[total_k = 7.*got \[6, 2, 8\]"),
        ({"cu_seqlens_q": starts((2, 3))}, ValueError, "cu_seqlens_q.*6 rows.*0 to 5"),
        ({"cu_seqlens_q": starts((7, -1))}, ValueError, "cu_seqlens_q"),
        ({"cu_seqlens_q": torch.tensor([1, 2, 6])}, ValueError, "cu_seqlens_q.*got 1"),
        ({"cu_seqlens_k": starts((7,))}, ValueError, r"cu_seqlens_k \[batch \+ 1 = 3\], got \[2\]"),
        ({"cu_seqlens_k": CUT_K.float()}, TypeError, "cu_seqlens_k.*int32.*got"),
        ({"cu_seqlens_k": [0, 3, 7]}, TypeError, "cu_seqlens_k to be a tensor, got"),
        ({"alibi_slopes": zeros(3, 4)}, ValueError, r"alibi_slopes \[batch = 2, nheads = 4\]"),
    ],
)
def test_invalid_packed_sequences_are_refused(
    changes: dict[str, Any], error: type[Exception], text: str, probs: bool
) -> None:
    arguments = {"q": ROWS, "k": KEY_ROWS, "v": KEY_ROWS}
    arguments |= {"cu_seqlens_q": CUT_Q, "cu_seqlens_k": CUT_K}
    call: Callable[..., Any] = functools.partial(
        fa.flash_attn_varlen_func, max_seqlen_q=4, max_seqlen_k=4, return_attn_probs=probs
    )
    call(**arguments)
    with pytest.raises(error, match=text):
        call(**arguments | changes)


@pytest.mark.parametrize(
    ("table", "error", "text"),
    [
        ([[0], [1]], None, ""),
        ([[0], [2]], ValueError, "block_table from 0 to 1, got 2"),
        ([[-1], [0]], ValueError, "block_table from 0 to 1, got -1"),
        ([[0]], ValueError, r"block_table \[batch = 2, max_blocks\], got \[1, 1\]"),
        ([[], []], ValueError, "block_table for 4 rows, got 0 blocks of 4"),
        ([[0.0], [1.0]], TypeError, "block_table.*int32.*float32"),
    ],
)
def test_invalid_block_tables_are_refused(
    table: list[list[int]], error: type[Exception] | None, text: str
) -> None:
    pool = zeros(2, 4, 2, 8)
    given = torch.tensor(table) if table[0] else torch.zeros(2, 0, dtype=torch.int32)
    arguments = (ROWS, pool, pool, CUT_Q, CUT_K, 4, 4)
    if error is None:
        assert fa.flash_attn_varlen_func(*arguments, block_table=given).shape == (6, 4, 8)
    else:
        with pytest.raises(error, match=text):
            fa.flash_attn_varlen_func(*arguments, block_table=given)


@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_wrong_packed_tensors_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"kv \[batch = 2, seqlen_k, 2, nheads_k, headdim = 8\]"):
        fa.flash_attn_kvpacked_func(Q.to(dtype), zeros(2, 5, 3, 4, 8).to(dtype))
    with pytest.raises(TypeError, match="kv of torch"):
        fa.flash_attn_kvpacked_func(Q.to(dtype), zeros(2, 5, 2, 4, 8))
    with pytest.raises(ValueError, match=r"qkv \[batch, seqlen, 3, nheads, headdim\]"):
        fa.flash_attn_qkvpacked_func(zeros(2, 5, 2, 4, 8).to(dtype))
    with pytest.raises(ValueError, match=r"qkv \[total, 3, nheads, headdim\]"):
        fa.flash_attn_varlen_qkvpacked_func(zeros(7, 2, 4, 8).to(dtype), CUT_K, 4)
    with pytest.raises(ValueError, match=r"kv \[total_k, 2, nheads_k, headdim = 8\]"):
        fa.flash_attn_varlen_kvpacked_func(ROWS, zeros(7, 3, 4, 8), CUT_Q, CUT_K, 4, 4)
