"""torch's registry of implementations, and torch.nn.attention.varlen.varlen_attn on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import flash_attention  # noqa: F401  registers the implementation
import pytest
import torch
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
)
from torch.nn.attention.varlen import AuxRequest, varlen_attn, varlen_attn_out

from support.flash_attn_reference import attend
from support.problems import DTYPES, dtype_name
from support.sdpa_calls import runs_ours
from support.tolerances import CLOSE

pytestmark = pytest.mark.once

HEADS, KEY_HEADS, WIDTH = 4, 2, 6
QUERIES, KEYS = (5, 0, 9, 1, 2), (9, 3, 5, 30, 0)
WINDOWS = [(-1, -1), (-1, 0), (3, 0), (2, 2), (4, -1)]
LSE = AuxRequest(lse=True)


@pytest.fixture
def active() -> Iterator[None]:
    activate_flash_attention_impl("flash_attention")
    yield
    restore_flash_attention_impl()


def starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def packed(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(sum(QUERIES), HEADS), (sum(KEYS), KEY_HEADS), (sum(KEYS), KEY_HEADS)]
    return [torch.randn(*s, WIDTH).to(dtype).requires_grad_() for s in shapes]


def call(inputs: list[Tensor], function: Any = varlen_attn, **options: Any) -> Any:
    cuts = (starts(QUERIES), starts(KEYS), max(QUERIES), max(KEYS))
    return function(*inputs, *cuts, enable_gqa=True, **options)


def definition(
    inputs: list[Tensor], keys: tuple[int, ...] = KEYS, **options: Any
) -> tuple[Tensor, Tensor]:
    """out and lse [heads, rows]; of the keys of each sequence, the first keys[n]."""
    query, key, value = inputs
    each = [
        attend(q, k[:n], v[:n], **options)
        for q, k, v, n in zip(
            query.split(QUERIES), key.split(KEYS), value.split(KEYS), keys, strict=True
        )
    ]
    return torch.cat([out for out, _ in each]), torch.cat([lse for _, lse in each], 1)


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, weights)]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Sums of up to 40 terms of order 1; gradients sum over queries, too, hence the factor."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=20 * CLOSE[dtype])


def test_registered_and_not_active() -> None:
    assert "flash_attention" in list_flash_attention_impls()
    assert current_flash_attention_impl() is None
    with pytest.raises(NotImplementedError, match="CPU"):
        call(packed())


def test_activate_and_restore_switch() -> None:
    q = torch.randn(1, 2, 8, 4)
    for _ in range(2):
        assert not runs_ours(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
        activate_flash_attention_impl("flash_attention")
        assert current_flash_attention_impl() == "flash_attention"
        assert runs_ours(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
        assert call(packed()).shape == (sum(QUERIES), HEADS, WIDTH)
        activate_flash_attention_impl("flash_attention")  # again: once is enough to restore
        restore_flash_attention_impl()
        assert current_flash_attention_impl() is None
        with pytest.raises(NotImplementedError, match="CPU"):
            call(packed())


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("scale", [None, -0.3])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_varlen_attn_matches_the_definition(window: tuple[int, int], scale: float | None) -> None:
    inputs = packed()
    out, lse = call(inputs, window_size=window, scale=scale, return_aux=LSE)
    expected, expected_lse = definition(inputs, window_size=window, softmax_scale=scale)
    found = with_gradients(out, inputs)
    assert_close(found, with_gradients(expected, inputs), torch.float64)
    finite = expected_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite) and (lse[~finite] == math.inf).all()
    assert_close([lse[finite]], [expected_lse[finite]], torch.float64)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_dtype(dtype: torch.dtype) -> None:
    inputs = packed(dtype)
    found = with_gradients(call(inputs, window_size=(-1, 0)), inputs)
    assert all(result.dtype == dtype for result in found)
    expected = definition(inputs, window_size=(-1, 0))[0]
    assert_close(found, with_gradients(expected, inputs), dtype)


@pytest.mark.usefixtures("active")
def test_gradcheck() -> None:
    cut = starts((2, 0, 3))
    inputs = [torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(
        lambda *qkv: varlen_attn(*qkv, cut, cut, 3, 3, window_size=(-1, 0)), inputs
    )


USED = (4, 3, 0, 17, 0)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_keys_in_use(window: tuple[int, int]) -> None:
    inputs = [x.detach() for x in packed()]
    used = torch.tensor(USED, dtype=torch.int32)
    out, lse = call(inputs, window_size=window, seqused_k=used, return_aux=LSE)
    expected, expected_lse = definition(inputs, USED, window_size=window)
    assert_close([out], [expected], torch.float64)
    finite = expected_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert_close([lse[finite]], [expected_lse[finite]], torch.float64)

    page, pages = 4, -(-max(KEYS) // 4)
    table = torch.randperm(len(KEYS) * pages).view(len(KEYS), pages)
    pools = []
    for x in inputs[1:]:
        pool = torch.full((table.numel(), page, *x.shape[1:]), math.nan, dtype=x.dtype)
        for n, rows in enumerate(x.split(KEYS)):
            for m, block in enumerate(rows.split(page)):
                pool[table[n, m], : block.size(0)] = block
        pools.append(pool)
    paged = varlen_attn(
        inputs[0], *pools, starts(QUERIES), None, max(QUERIES), max(KEYS),
        enable_gqa=True, window_size=window, seqused_k=used, block_table=table.int(),
    )  # fmt: skip
    assert torch.equal(paged, out)


@pytest.mark.usefixtures("active")
def test_varlen_attn_out_writes_into_a_tensor() -> None:
    inputs = [x.detach() for x in packed()]
    expected, expected_lse = call(inputs, return_aux=LSE)
    out = torch.empty_like(expected)
    found, lse = call([out, *inputs], varlen_attn_out, return_aux=LSE)
    assert found is out
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    with pytest.raises(ValueError, match=r"expected out \[17, 4, 6\]"):
        call([out[:-1], *inputs], varlen_attn_out)


@pytest.mark.usefixtures("active")
def test_compiles() -> None:
    inputs = packed(torch.float32)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = with_gradients(compiled(inputs, window_size=(-1, 0)), inputs)
    expected = with_gradients(call(inputs, window_size=(-1, 0)), inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    torch.compiler.reset()


ROWS, CUT = torch.zeros(7, 2, 8), starts((3, 4))
POOL = torch.zeros(2, 4, 2, 8)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"cu_seq_k": None}, ValueError, "expected cu_seq_k or block_table, got neither"),
        ({"cu_seq_q": starts((3, 3))}, ValueError, "cu_seqlens_q from 0 to the 7 rows"),
        ({"cu_seq_q": CUT.view(1, 3)}, ValueError, r"cu_seq_q \[sequences \+ 1\], got \[1, 3\]"),
        ({"cu_seq_k": starts((3, 5))}, ValueError, "cu_seqlens_k from 0 to the 7 rows"),
        ({"value": ROWS.double()}, TypeError, "dtype"),
        ({"query": ROWS.long()}, TypeError, "dtype|floating"),
        ({"seqused_k": torch.tensor([3, 5])}, ValueError, "at most 4, .*sequence 1, got 5"),
        ({"seqused_k": torch.tensor([-1, 2])}, ValueError, "seqused_k of 0 or more, got -1"),
        ({"seqused_k": torch.tensor([1])}, ValueError, r"seqused_k \[2\], got \[1\]"),
        ({"seqused_k": torch.tensor([1.0, 2.0])}, TypeError, "seqused_k.*int32"),
        ({"key": POOL, "value": POOL, "block_table": CUT[:2].view(2, 1)}, ValueError, "seqused_k"),
        (
            {
                "key": POOL,
                "value": POOL,
                "block_table": CUT[:2].view(2, 1),
                "seqused_k": torch.tensor([1, 1]),
            },
            ValueError,
            "block_table from 0 to 1, got 3",
        ),
    ],
)
def test_invalid_arguments_are_refused(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {"query": ROWS, "key": ROWS, "value": ROWS}
    arguments |= {"cu_seq_q": CUT, "cu_seq_k": CUT, "max_q": 4, "max_k": 4}
    varlen_attn(**arguments)
    with pytest.raises(error, match=text):
        varlen_attn(**arguments | changes)


@pytest.mark.usefixtures("active")
def test_what_the_operator_of_torch_has_and_varlen_attn_has_not() -> None:
    forward = torch.ops.aten._flash_attention_forward
    with pytest.raises(NotImplementedError, match="expected no dropout_p"):
        forward(ROWS, ROWS, ROWS, CUT, CUT, 4, 4, 0.5, False, False)
    with pytest.raises(NotImplementedError, match="no alibi_slopes"):
        forward(ROWS, ROWS, ROWS, CUT, CUT, 4, 4, 0.0, False, False, alibi_slopes=torch.ones(2))
    with pytest.raises(NotImplementedError, match="packed sequences with cu_seq_q"):
        forward(ROWS, ROWS, ROWS, None, None, 4, 4, 0.0, False, False)
