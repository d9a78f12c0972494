"""varlen_attention: each packed sequence matches a separate call, forward and backward."""

from __future__ import annotations

from typing import Any

import flash_attention
import pytest
import torch
from flash_attention import varlen_attention
from torch import Tensor

from support import reference
from support.checks import Checker, largest_difference
from support.instruction_sets import kernels
from support.measuring import threads
from support.problems import DTYPES, DTYPES_16BIT, Problem, Spec, dtype_name
from support.reference import definition
from support.tolerances import CLOSE

HEADS, KEY_HEADS, VALUE_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 1, 8, 12
# Empty sequences at both ends and in the middle, one row, more queries than keys, several blocks.
QUERIES = (0, 5, 1, 0, 70, 33, 2, 0)
KEYS = (3, 9, 1, 0, 31, 200, 0, 0)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (6, 2)},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": -0.3},
    "block": {"block_size": 7},
    "no-simd": {"use_simd": False},
    "all": {"causal": True, "window": (40, -1), "softcap": 2.0, "block_size": 32},
}


def starts(lengths: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def packed(dtype: torch.dtype, per_head: str = "") -> dict[str, Tensor]:
    """Leaves; `per_head` is the shape of slopes and sinks, "H" or "NH", or "" for none."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    rows = {
        "query": random(sum(QUERIES), HEADS, WIDTH),
        "key": random(sum(KEYS), KEY_HEADS, WIDTH),
        "value": random(sum(KEYS), VALUE_HEADS, VALUE_WIDTH),
    }
    if per_head:
        shape = (len(QUERIES), HEADS) if per_head == "NH" else (HEADS,)
        rows["alibi_slopes"] = random(*shape).detach().abs().requires_grad_()
        rows["sinks"] = random(*shape)
    return rows


def one_by_one(inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """The same by a call of `attention` for each sequence."""
    out = []
    parts = zip(
        inputs["query"].split(QUERIES),
        inputs["key"].split(KEYS),
        inputs["value"].split(KEYS),
        strict=True,
    )
    for n, rows in enumerate(parts):
        own = {
            name: inputs[name][n] if inputs[name].dim() == 2 else inputs[name]
            for name in ("alibi_slopes", "sinks")
            if name in inputs
        }
        heads = (x.transpose(0, 1).unsqueeze(0) for x in rows)
        out.append(flash_attention.attention(*heads, **own, **options)[0].transpose(0, 1))
    return torch.cat(out)


def call(inputs: dict[str, Tensor], **options: Any) -> Tensor:
    return varlen_attention(
        **inputs, cu_seqlens_q=starts(QUERIES), cu_seqlens_k=starts(KEYS), **options
    )


def results(out: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, list(inputs.values()), grad)]


@pytest.mark.parametrize("per_head", ["", "H", "NH"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_each_sequence_matches_a_separate_call(
    dtype: torch.dtype, options: dict[str, Any], per_head: str
) -> None:
    inputs = packed(dtype, per_head)
    found = results(call(inputs, **options), inputs)
    expected = results(one_by_one(inputs, **options), inputs)
    # Outputs come from the same kernels; sums over sequences may differ in order.
    for one, other, name in zip(found, expected, ["out", *inputs], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=20 * CLOSE[dtype], msg=name)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("per_head", ["16 bits", "float32"])
@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_16_bit_sequences_with_their_own_slopes_and_sinks(
    dtype: torch.dtype, per_head: str
) -> None:
    """The kernels read slopes and sinks in float32, unlike the 16-bit rows."""
    inputs = packed(dtype, "NH")
    if per_head == "float32":
        wide = {n: inputs[n].detach().float() for n in ("alibi_slopes", "sinks")}
        inputs |= {n: x.requires_grad_() for n, x in wide.items()}
    found = results(call(inputs, causal=True), inputs)
    expected = results(one_by_one(inputs, causal=True), inputs)
    for one, other, name in zip(found, expected, ["out", *inputs], strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_use_simd_false_runs_scalar_kernels_in_both_passes(dtype: torch.dtype) -> None:
    inputs = packed(dtype, "NH")
    found = results(call(inputs, use_simd=False), inputs)
    with kernels("scalar"):
        expected = results(call(inputs), inputs)
    for one, other, name in zip(found, expected, ["out", *inputs], strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_one_sequence_matches_the_reference(dtype: torch.dtype) -> None:
    """One sequence, compared with the reference like any other call."""
    spec = Spec(1, 3, queries=40, keys=65, causal=True)
    generator = torch.Generator().manual_seed(1)
    shapes = {"query": (40, 3, 8), "key": (65, 3, 8), "value": (65, 3, 12)}
    rows = {
        n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
        for n, s in shapes.items()
    }
    out = varlen_attention(
        **rows, cu_seqlens_q=starts((40,)), cu_seqlens_k=starts((65,)), causal=True
    )
    heads = {n: x.transpose(0, 1).unsqueeze(0) for n, x in rows.items()}
    options = dict(causal=True, window=None, softcap=0.0, scale=None, dropout=0.0)
    problem = Problem(
        heads, options, (), torch.zeros(1, 3, 40, 12), torch.zeros(1, 3, 40), spec=spec
    )
    assert definition(problem, torch.float64).out.shape == (1, 3, 40, 12)
    assert Checker(problem).error_message("out", out.transpose(0, 1).unsqueeze(0)) is None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=dtype_name)
def test_int32_and_int64_offsets(dtype: torch.dtype) -> None:
    inputs = packed(torch.float32)
    found = varlen_attention(
        **inputs, cu_seqlens_q=starts(QUERIES, dtype), cu_seqlens_k=starts(KEYS, dtype)
    )
    assert torch.equal(found, call(inputs))


def test_any_layout() -> None:
    inputs = packed(torch.float64)
    expected = results(call(inputs), inputs)
    moved = {n: x.detach().movedim(0, 2).contiguous().movedim(2, 0) for n, x in inputs.items()}
    moved = {n: x.requires_grad_() for n, x in moved.items()}
    for one, other in zip(results(call(moved), moved), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("per_head", ["H", "NH"])
def test_gradcheck(per_head: str) -> None:
    lengths = (2, 0, 3)
    shapes = [(5, 2, 2), (5, 1, 2), (5, 2, 3)]
    number_shape = (2,) if per_head == "H" else (3, 2)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    inputs += [torch.rand(number_shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def function(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, sinks: Tensor) -> Tensor:
        return varlen_attention(
            q, k, v, starts(lengths), starts(lengths),
            causal=True, alibi_slopes=slopes, sinks=sinks, softcap=1.5,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, inputs)


def test_dropout_follows_the_seed_and_differs_between_sequences() -> None:
    ones = torch.ones(60, 1, 1)
    value = torch.eye(30).unsqueeze(1).repeat(2, 1, 1)  # shows the weights
    cut = starts((30, 30))

    def weights() -> Tensor:
        torch.manual_seed(3)
        return varlen_attention(ones, ones, value, cut, cut, dropout=0.5)

    found = weights()
    assert torch.equal(found, weights())
    assert not torch.equal(found[:30] > 0, found[30:] > 0)
    # 1800 weights: the standard deviation of the kept fraction is 0.012.
    assert (found > 0).double().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 1.5}], ids=["plain", "more"])
def test_dropout_mask_is_the_same_in_forward_and_backward(options: dict[str, Any]) -> None:
    """With the identity as value, the output is the weights and shows which are dropped."""
    length, dropout = 40, 0.4
    cut = starts((length, length))
    generator = torch.Generator().manual_seed(4)
    inputs = {
        name: torch.randn(2 * length, 2, WIDTH, generator=generator, dtype=torch.float64)
        for name in ("query", "key", "value")
    }
    grad = torch.randn(2 * length, 2, WIDTH, generator=generator, dtype=torch.float64)

    def call_of(**changes: Tensor) -> Tensor:
        torch.manual_seed(9)
        arguments = dict(inputs, **changes) | options
        return varlen_attention(**arguments, cu_seqlens_q=cut, cu_seqlens_k=cut, dropout=dropout)

    identity = torch.eye(length, dtype=torch.float64).repeat(2, 1).unsqueeze(1)
    keep = call_of(value=identity.expand(-1, 2, -1)) != 0
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    out = call_of()
    found = [out, *torch.autograd.grad(out, list(inputs.values()), grad)]
    expected = torch.cat(
        [
            reference.attention(
                {n: x[rows].transpose(0, 1).unsqueeze(0) for n, x in inputs.items()},
                keep=keep[rows].transpose(0, 1).unsqueeze(0),
                dropout=dropout,
                **options,
            )[0][0].transpose(0, 1)
            for rows in (slice(0, length), slice(length, None))
        ]
    )
    wanted = [expected, *torch.autograd.grad(expected, list(inputs.values()), grad)]
    for name, one, other in zip(["out", *inputs], found, wanted, strict=True):
        assert largest_difference(one, other) < 10 * CLOSE[torch.float64], name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_bitwise_equal_for_any_thread_count(options: dict[str, Any]) -> None:
    inputs = packed(torch.float32, "NH")
    found = []
    for count in (1, 2, 3, 8):
        with threads(count):
            found.append(results(call(inputs, **options), inputs))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_zero_sequences() -> None:
    none = starts(())
    q, k, v = (torch.zeros(0, 2, 4, requires_grad=True) for _ in range(3))
    out = varlen_attention(q, k, v, none, none)
    assert out.shape == (0, 2, 4)
    assert torch.autograd.grad(out.sum(), q)[0].shape == (0, 2, 4)


@pytest.mark.once
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    inputs = packed(torch.float32, "NH")
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    found = results(compiled(inputs, causal=True), inputs)
    for one, other in zip(found, results(call(inputs, causal=True), inputs), strict=True):
        assert torch.equal(one, other)
    torch.compiler.reset()


@pytest.mark.once
def test_opcheck() -> None:
    inputs = packed(torch.float32, "NH")
    arguments = (inputs["query"], inputs["key"], inputs["value"], starts(QUERIES), starts(KEYS))
    named = {"alibi_slopes": inputs["alibi_slopes"], "sinks": inputs["sinks"], "causal": True}
    torch.library.opcheck(torch.ops.flash.varlen_attention.default, arguments, named)


ROWS = {"query": (6, 4, 8), "key": (7, 2, 8), "value": (7, 2, 8)}


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"query": torch.zeros(1, 6, 4, 8)}, ValueError, r"query \[rows of all sequences, heads"),
        ({"key": torch.zeros(7, 3, 8)}, ValueError, "multiple"),
        ({"value": torch.zeros(6, 2, 8)}, ValueError, "one length, got 7 and 6"),
        ({"key": torch.zeros(7, 2, 8).double()}, TypeError, "dtype"),
        ({"cu_seqlens_q": torch.tensor([0, 2, 5])}, ValueError, "from 0 to the 6 rows.*0 to 5"),
        ({"cu_seqlens_q": torch.tensor([1, 2, 6])}, ValueError, "from 0 to the 6 rows.*1 to 6"),
        ({"cu_seqlens_q": torch.tensor([0, 8, 6])}, ValueError, "never to fall, got 8 and then 6"),
        ({"cu_seqlens_q": torch.tensor([0, 6])}, ValueError, "one number of sequences"),
        ({"cu_seqlens_q": torch.tensor([0.0, 2, 6])}, TypeError, "int32 or int64, got Float"),
        ({"cu_seqlens_k": torch.tensor([[0, 3, 7]])}, ValueError, r"\[sequences \+ 1\]"),
        ({"cu_seqlens_k": torch.tensor([], dtype=torch.long)}, ValueError, "one number of sequ"),
        ({"alibi_slopes": torch.zeros(3)}, ValueError, r"\[heads\] = \[4\].*got \[3\]"),
        ({"sinks": torch.zeros(3, 4)}, ValueError, r"\[sequences, heads\] = \[2, 4\], got"),
        ({"sinks": torch.zeros(4).double()}, TypeError, "sinks of dtype Float"),
        ({"dropout": 2.0}, ValueError, "dropout"),
        ({"window": (-3, 0)}, ValueError, "window"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {n: torch.zeros(s) for n, s in ROWS.items()}
    arguments |= {"cu_seqlens_q": starts((2, 4)), "cu_seqlens_k": starts((3, 4))}
    varlen_attention(**arguments)
    with pytest.raises(error, match=text):
        varlen_attention(**arguments | changes)


@pytest.mark.once
def test_bias_and_second_derivatives_are_refused() -> None:
    inputs = packed(torch.float64)
    cuts = {"cu_seqlens_q": starts(QUERIES), "cu_seqlens_k": starts(KEYS)}
    with pytest.raises(NotImplementedError, match="neither bias nor query_positions"):
        torch.ops.flash.varlen_attention(
            **inputs, **cuts, bias=torch.zeros((), dtype=torch.float64)
        )
    (grad,) = torch.autograd.grad(call(inputs).square().sum(), inputs["query"], create_graph=True)
    with pytest.raises(NotImplementedError, match="call flash::attention for each sequence"):
        grad.sum().backward()
