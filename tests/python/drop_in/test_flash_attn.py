"""flash-attn's functions against their definition: results, gradients, layouts."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import pytest
import torch
from flash_attention import flash_attn_interface as fa
from torch import Tensor

from support.flash_attn_reference import attend
from support.problems import DTYPES, dtype_name
from support.tolerances import CLOSE

# The kernels' instruction sets are tested with the operator.
pytestmark = pytest.mark.once

BATCH, HEADS, KEY_HEADS, WIDTH = 3, 4, 2, 5
# More keys, more queries (so that some attend nothing), one query, no query, no key.
LENGTHS = [(5, 9), (9, 5), (1, 7), (0, 4), (4, 0)]
QUERIES, KEYS = (5, 0, 9, 1, 2), (9, 3, 5, 30, 0)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (3, 2)},
    "one-sided": {"window_size": (2, -1)},
    "negative": {"window_size": (-7, 1)},
    "causal-window": {"causal": True, "window_size": (2, 3)},
    "softcap": {"softcap": 1.5},
    "no-softcap": {"softcap": -1.0},
    "scale": {"softmax_scale": -0.3},
    "all": {"causal": True, "window_size": (4, -1), "softcap": 2.0, "softmax_scale": 0.4},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Sums of up to 40 terms of order 1; gradients sum over queries, too, hence the factor."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=20 * CLOSE[dtype])


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, weights)]


def reference(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """out and softmax_lse of a batch."""
    slopes = options.get("alibi_slopes")
    each = []
    for n, rows in enumerate(zip(q, k, v, strict=True)):
        own = {} if slopes is None else {"alibi_slopes": slopes[n] if slopes.dim() > 1 else slopes}
        each.append(attend(*rows, **options | own))
    return torch.stack([out for out, _ in each]), torch.stack([lse for _, lse in each])


def packed_reference(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """out [total_q, ..] and softmax_lse [nheads, total_q] of the sequences of QUERIES and KEYS."""
    slopes = options.get("alibi_slopes")
    each = []
    parts = zip(q.split(QUERIES), k.split(KEYS), v.split(KEYS), strict=True)
    for n, rows in enumerate(parts):
        own = {} if slopes is None else {"alibi_slopes": slopes[n] if slopes.dim() > 1 else slopes}
        each.append(attend(*rows, **options | own))
    return [torch.cat([out for out, _ in each]), torch.cat([lse for _, lse in each], 1)]


def starts(lengths: tuple[int, ...], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def batch(lengths: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k and v, which has a width of its own."""
    queries, keys = lengths
    return [
        random(BATCH, queries, HEADS, WIDTH, dtype=dtype),
        random(BATCH, keys, KEY_HEADS, WIDTH, dtype=dtype),
        random(BATCH, keys, KEY_HEADS, WIDTH + 2, dtype=dtype),
    ]


def packed(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        random(sum(QUERIES), HEADS, WIDTH, dtype=dtype),
        random(sum(KEYS), KEY_HEADS, WIDTH, dtype=dtype),
        random(sum(KEYS), KEY_HEADS, WIDTH + 2, dtype=dtype),
    ]


def call_packed(inputs: list[Tensor], **options: Any) -> Any:
    cuts = (starts(QUERIES), starts(KEYS), max(QUERIES), max(KEYS))
    return fa.flash_attn_varlen_func(*inputs, *cuts, **options)


@every_option
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_batch_matches_the_definition(lengths: tuple[int, int], options: dict[str, Any]) -> None:
    inputs = batch(lengths)
    out = fa.flash_attn_func(*inputs, **options)
    assert out.is_contiguous()
    expected = with_gradients(reference(*inputs, options)[0], inputs)
    assert_close(with_gradients(out, inputs), expected, torch.float64)


@every_option
def test_packed_sequences_match_the_definition(options: dict[str, Any]) -> None:
    inputs = packed()
    found = with_gradients(call_packed(inputs, **options), inputs)
    expected = with_gradients(packed_reference(*inputs, options)[0], inputs)
    assert_close(found, expected, torch.float64)


@pytest.mark.parametrize("shape", ["H", "BH"])
@pytest.mark.parametrize("causal", [False, True], ids=["all keys", "causal"])
@every_dtype
def test_float32_alibi_slopes_with_every_dtype(
    dtype: torch.dtype, causal: bool, shape: str
) -> None:
    def slopes(count: int) -> Tensor:
        return torch.rand((count, HEADS) if shape == "BH" else (HEADS,))

    inputs, own = batch((5, 9), dtype), {"alibi_slopes": slopes(BATCH), "causal": causal}
    found = with_gradients(fa.flash_attn_func(*inputs, **own), inputs)
    assert_close(found, with_gradients(reference(*inputs, own)[0], inputs), dtype)

    inputs, own = packed(dtype), {"alibi_slopes": slopes(len(QUERIES)), "causal": causal}
    found = with_gradients(call_packed(inputs, **own), inputs)
    assert_close(found, with_gradients(packed_reference(*inputs, own)[0], inputs), dtype)


@every_dtype
def test_every_dtype(dtype: torch.dtype) -> None:
    options = OPTIONS["all"]
    inputs = batch((9, 5), dtype)
    found = with_gradients(fa.flash_attn_func(*inputs, **options), inputs)
    assert_close(found, with_gradients(reference(*inputs, options)[0], inputs), dtype)
    inputs = packed(dtype)
    found = with_gradients(call_packed(inputs, **options), inputs)
    assert_close(found, with_gradients(packed_reference(*inputs, options)[0], inputs), dtype)


def test_slopes_get_a_gradient() -> None:
    q, k, v = (x.detach() for x in batch((5, 9)))
    slopes = torch.rand(BATCH, HEADS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda own: fa.flash_attn_func(q, k, v, causal=True, alibi_slopes=own), slopes
    )


def test_packed_arguments_equal_separate_ones() -> None:
    options = OPTIONS["all"]
    q, kv = random(BATCH, 5, HEADS, WIDTH), random(BATCH, 9, 2, KEY_HEADS, WIDTH)
    separate = with_gradients(fa.flash_attn_func(q, *kv.unbind(2), **options), [q, kv])
    together = with_gradients(fa.flash_attn_kvpacked_func(q, kv, **options), [q, kv])
    assert all(torch.equal(one, other) for one, other in zip(together, separate, strict=True))

    qkv = random(BATCH, 5, 3, HEADS, WIDTH)
    separate = with_gradients(fa.flash_attn_func(*qkv.unbind(2), **options), [qkv])
    together = with_gradients(fa.flash_attn_qkvpacked_func(qkv, **options), [qkv])
    assert all(torch.equal(one, other) for one, other in zip(together, separate, strict=True))

    q, kv = random(sum(QUERIES), HEADS, WIDTH), random(sum(KEYS), 2, KEY_HEADS, WIDTH)
    cuts = (starts(QUERIES), starts(KEYS), max(QUERIES), max(KEYS))
    out = fa.flash_attn_varlen_func(q, *kv.unbind(1), *cuts, **options)
    separate = with_gradients(out, [q, kv])
    together = with_gradients(fa.flash_attn_varlen_kvpacked_func(q, kv, *cuts, **options), [q, kv])
    assert all(torch.equal(one, other) for one, other in zip(together, separate, strict=True))

    qkv, cut = random(sum(KEYS), 3, HEADS, WIDTH), starts(KEYS)
    out = fa.flash_attn_varlen_func(*qkv.unbind(1), cut, cut, 30, 30, **options)
    separate = with_gradients(out, [qkv])
    together = with_gradients(fa.flash_attn_varlen_qkvpacked_func(qkv, cut, 30, **options), [qkv])
    assert all(torch.equal(one, other) for one, other in zip(together, separate, strict=True))


@pytest.mark.parametrize("page", [1, 4, 256])
@pytest.mark.parametrize("order", ["mixed", "adjoining"])
def test_blocks_of_keys_match_rows_of_keys(order: str, page: int) -> None:
    q, k, v = packed()
    options = OPTIONS["all"]
    expected = with_gradients(call_packed([q, k, v], **options), [q])
    counts = [-(-length // page) for length in KEYS]
    free = list(range(sum(counts) + 2))
    if order == "mixed":
        free = free[::2] + free[1::2]
    table = torch.full((len(KEYS), max(counts) + 1), -1, dtype=torch.int32)  # -1: never read
    pools = [torch.full((len(free), page, *x.shape[1:]), math.nan).double() for x in (k, v)]
    for n, (key, value) in enumerate(zip(k.split(KEYS), v.split(KEYS), strict=True)):
        for m in range(counts[n]):
            table[n, m] = free.pop(0)
            for pool, rows in zip(pools, (key, value), strict=True):
                part = rows[m * page : (m + 1) * page].detach()
                pool[table[n, m], : part.size(0)] = part
    found = with_gradients(call_packed([q, *pools], block_table=table, **options), [q])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@every_dtype
def test_softmax_lse(dtype: torch.dtype) -> None:
    """Its gradient, too, which flash-attn does not have; the rows without a key have none."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = batch((9, 5), dtype)
    out, lse, s_dmask = fa.flash_attn_func(*inputs, causal=True, return_attn_probs=True)
    assert torch.equal(out, fa.flash_attn_func(*inputs, causal=True))
    expected = reference(*inputs, {"causal": True})[1]
    assert torch.equal(lse[:, :, :4], torch.full((BATCH, HEADS, 4), math.inf, dtype=wide))
    assert_close([lse[:, :, 4:]], [expected[:, :, 4:]], wide)
    assert s_dmask.shape == (0,) and s_dmask.dtype == dtype
    leaves = inputs[:2]
    found = torch.autograd.grad(lse[:, :, 4:].sum(), leaves)
    assert_close(list(found), list(torch.autograd.grad(expected[:, :, 4:].sum(), leaves)), dtype)

    inputs = packed(dtype)
    out, lse, s_dmask = call_packed(inputs, causal=True, return_attn_probs=True)
    assert torch.equal(out, call_packed(inputs, causal=True))
    expected = packed_reference(*inputs, {"causal": True})[1]
    assert lse.shape == (HEADS, sum(QUERIES)) and s_dmask.shape == (0,)
    finite = expected.isfinite()
    assert torch.equal(lse.isfinite(), finite) and (lse[~finite] == math.inf).all()
    assert_close([lse[finite]], [expected[finite]], wide)


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 1.5}], ids=["plain", "more"])
def test_dropout_is_what_s_dmask_says(options: dict[str, Any]) -> None:
    dropped = options | {"dropout_p": 0.4}
    inputs = batch((40, 50))
    torch.manual_seed(5)
    alone = fa.flash_attn_func(*inputs, **dropped)
    torch.manual_seed(5)
    out, lse, s_dmask = fa.flash_attn_func(*inputs, **dropped, return_attn_probs=True)
    assert torch.equal(out, alone)
    assert s_dmask.shape == (BATCH, HEADS, 128, 128)
    assert not s_dmask[:, :, 40:].any() and not s_dmask[:, :, :, 50:].any()
    kept = s_dmask[:, :, :40, :50] >= 0
    # 24,000 weights: the standard deviation of the dropped fraction is 0.0032, or 0.0045 if causal.
    attended = s_dmask != 0
    assert (s_dmask[attended] < 0).double().mean().item() == pytest.approx(0.4, abs=0.03)
    expected = torch.stack(
        [
            attend(*rows, kept=kept[n], **dropped)[0]
            for n, rows in enumerate(zip(*inputs, strict=True))
        ]
    )
    found = with_gradients(out, inputs)
    assert_close(found, with_gradients(expected, inputs), torch.float64)
    assert_close([lse], [reference(*inputs, options)[1]], torch.float64)
    weights = s_dmask[:, :, :40, :50].abs()
    assert_close([weights.sum(-1)], [torch.ones(BATCH, HEADS, 40)], torch.float64)


def test_dropout_of_packed_sequences_is_what_s_dmask_says() -> None:
    inputs = packed()
    out, _, s_dmask = call_packed(inputs, dropout_p=0.4, return_attn_probs=True)
    assert s_dmask.shape == (len(QUERIES), HEADS, 128, 128)
    q, k, v = inputs
    parts = zip(q.split(QUERIES), k.split(KEYS), v.split(KEYS), strict=True)
    expected = []
    for n, rows in enumerate(parts):
        kept = s_dmask[n, :, : rows[0].size(0), : rows[1].size(0)] >= 0
        expected.append(attend(*rows, kept=kept, dropout_p=0.4)[0])
    found = with_gradients(out, inputs)
    assert_close(found, with_gradients(torch.cat(expected), inputs), torch.float64)


def test_no_sequence_and_an_empty_batch() -> None:
    none = starts(())
    rows = [random(0, HEADS, WIDTH) for _ in range(3)]
    assert fa.flash_attn_varlen_func(*rows, none, none, 0, 0).shape == (0, HEADS, WIDTH)
    out, lse, _ = fa.flash_attn_varlen_func(*rows, none, none, 0, 0, return_attn_probs=True)
    assert out.shape == (0, HEADS, WIDTH) and lse.shape == (HEADS, 0)
    empty = [random(0, 3, HEADS, WIDTH) for _ in range(3)]
    assert fa.flash_attn_func(*empty).shape == (0, 3, HEADS, WIDTH)


def test_torch_compile_without_graph_breaks() -> None:
    inputs = batch((5, 9))
    call = functools.partial(fa.flash_attn_func, causal=True, softcap=1.5)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), call(*inputs))
    inputs = packed()
    compiled = torch.compile(call_packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs, causal=True), call_packed(inputs, causal=True))
    torch.compiler.reset()


SIGNATURES = {
    "flash_attn_func": "q, k, v, {options}",
    "flash_attn_kvpacked_func": "q, kv, {options}",
    "flash_attn_qkvpacked_func": "qkv, {options}",
    "flash_attn_varlen_func": (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {options}, "
        "block_table=None"
    ),
    "flash_attn_varlen_kvpacked_func": (
        "q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {options}"
    ),
    "flash_attn_varlen_qkvpacked_func": "qkv, cu_seqlens, max_seqlen, {options}",
    "flash_attn_with_kvcache": (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
        "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, "
        "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
        "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False"
    ),
    "apply_rotary_emb": (
        "x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, "
        "max_seqlen=None"
    ),
    "unpad_input": "hidden_states, attention_mask, unused_mask=None",
    "pad_input": "hidden_states, indices, batch, seqlen",
}
SHARED = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False"
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_flash_attn(name: str) -> None:
    """Of version 2.8.3."""
    parameters = inspect.signature(getattr(fa, name)).parameters.values()
    words = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert ", ".join(words) == SIGNATURES[name].format(options=SHARED)
