"""The drop-in `scaled_dot_product_attention` matches torch's, including its sample inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import flash_attention
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from drop_in.torch_samples import samples
from support.checks import assert_rounded
from support.problems import DTYPES, DTYPES_16BIT, compute_dtype, dtype_name
from support.sdpa_calls import Call, assert_close_to_torch, largest
from support.tolerances import (
    ABSOLUTE_16BIT,
    CLOSE,
    SDPA_FLOAT32_TIMES_TORCH,
    SECOND_GRADIENT_ROUNDINGS,
    UNIT_ROUNDOFF,
)

ours = flash_attention.scaled_dot_product_attention


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def call_of(
    lead: tuple[int, ...], dtype: torch.dtype = torch.float64, queries: int = 5, **options: object
) -> Call:
    """A random call; `lead` are the dimensions before the length, value is wider than query."""
    shapes = ((*lead, queries, 8), (*lead, 7, 8), (*lead, 7, 10))
    return Call(*(random(*shape, dtype=dtype) for shape in shapes), **options)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_torch_sample_inputs(dtype: torch.dtype, grad: bool) -> None:
    calls = samples(dtype, grad)
    assert len(calls) >= 25
    for call in calls:
        assert_close_to_torch(replace(call, dropout_p=0.0), ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dropout_matches_standard_attention_on_sample_inputs(dtype: torch.dtype) -> None:
    calls = [c for c in samples(dtype) if c.dropout_p > 0 and c.query.dim() == c.key.dim()]
    assert calls
    for call in calls:
        positions = torch.arange(call.query.size(-2)) if call.is_causal else None

        def standard(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
            return flash_attention.standard_attention(
                *(x if x.dim() == 4 else x.unsqueeze(0) for x in (query, key, value)),
                causal=options["is_causal"],
                query_positions=positions,  # noqa: B023 - called within this iteration
                dropout=options["dropout_p"],
            ).view(*query.shape[:-1], -1)

        torch.manual_seed(5)
        mine = call.results(ours)
        torch.manual_seed(5)
        expected = call.results(standard)
        undropped = replace(call, dropout_p=0.0).results(ours)
        assert not torch.equal(mine["out"], undropped["out"])
        for name, tensor in expected.items():
            # Sample inputs reach 9, so results and gradients reach some hundreds.
            torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=500 * CLOSE[dtype])


@pytest.mark.once
def test_signature_matches_torch() -> None:
    documented = F.scaled_dot_product_attention.__doc__
    names = documented[documented.index("(") + 1 : documented.index(")")].replace("\n", "")
    parameters = [part.strip().split("=") for part in names.split(",")]
    mine = inspect.signature(ours).parameters
    assert [name for name, *_ in parameters] == list(mine)
    assert {name: text for name, *rest in parameters for text in rest} == {
        n: str(p.default) for n, p in mine.items() if p.default is not inspect.Parameter.empty
    }


LEADS = {"2-D": (), "3-D": (4,), "4-D": (2, 4), "5-D": (3, 2, 4), "6-D": (2, 1, 3, 4)}


@pytest.mark.parametrize("queries", [1, 5, 7, 11])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_any_number_of_dimensions(
    dtype: torch.dtype, lead: tuple[int, ...], is_causal: bool, queries: int
) -> None:
    assert_close_to_torch(call_of(lead, dtype, queries, is_causal=is_causal), ours)


BROADCASTS = {
    "one batch of keys": ((2, 3), (1, 3), (1, 3)),
    "one batch of queries": ((1, 3), (2, 3), (2, 3)),
    "one head of keys": ((2, 3), (2, 1), (2, 1)),
    "one head of queries": ((2, 1), (2, 3), (2, 3)),
    "one head except of values": ((2, 1), (2, 1), (2, 3)),
    "fewer dimensions": ((2, 3), (3,), ()),
    "fewer dimensions of query": ((), (2, 3), (3,)),
    "five dimensions": ((2, 1, 3), (1, 4, 3), (2, 4, 1)),
    "five and four": ((4, 3), (2, 4, 3), (1, 3)),
}


@pytest.mark.parametrize("leads", BROADCASTS.values(), ids=BROADCASTS.keys())
def test_leading_dimensions_broadcast(leads: tuple[tuple[int, ...], ...]) -> None:
    query, key, value = leads
    call = Call(random(*query, 5, 8), random(*key, 7, 8), random(*value, 7, 10))
    assert_close_to_torch(call, ours)
    assert_close_to_torch(replace(call, is_causal=True), ours)


@pytest.mark.parametrize("dtype", DTYPES_16BIT, ids=dtype_name)
def test_gradients_of_broadcast_inputs_are_rounded_once(dtype: torch.dtype) -> None:
    """Sums over a batch whose second half nearly cancels the first."""
    query, grad = torch.randn(32, 2, 5, 8).to(dtype), torch.randn(32, 2, 5, 10).to(dtype)
    query, grad = torch.cat([query, query * 1.01]), torch.cat([grad, -grad])
    rows = [torch.randn(1, 1, 7, n).to(dtype) for n in (8, 10)]

    def gradients(of: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(of).requires_grad_() for x in rows]
        return torch.autograd.grad(ours(query.to(of), *leaves), leaves, grad.to(of))

    for found, exact in zip(gradients(dtype), gradients(torch.float32), strict=True):
        assert_rounded(found, exact)


MASK_SHAPES = {
    "2-D": [(5, 7), (1, 7), (5, 1), (1, 1)],
    "3-D": [(4, 5, 7), (1, 5, 7), (4, 1, 7), (5, 7), (1, 1)],
    "4-D": [(2, 4, 5, 7), (1, 4, 5, 7), (2, 1, 1, 7), (1, 1, 5, 1), (4, 5, 7), (5, 7), (1, 7)],
    "5-D": [(3, 2, 4, 5, 7), (1, 2, 1, 5, 7), (3, 1, 4, 1, 7), (1, 1, 4, 5, 7), (2, 4, 5, 7)],
}
MASKS = [(rank, shape) for rank, shapes in MASK_SHAPES.items() for shape in shapes]


@pytest.mark.parametrize("kind", ["bool", "float", "float with gradient"])
@pytest.mark.parametrize(("rank", "shape"), MASKS, ids=str)
def test_masks_of_every_broadcastable_shape(rank: str, shape: tuple[int, ...], kind: str) -> None:
    if kind == "bool":
        mask = torch.rand(shape) < 0.7
    else:
        mask = random(*shape).detach().requires_grad_(kind != "float")
    assert_close_to_torch(call_of(LEADS[rank], attn_mask=mask), ours)


def test_expanded_transposed_and_strided_masks() -> None:
    for mask in (random(5, 1).expand(2, 4, 5, 7), random(7, 5).mT, random(2, 4, 5, 14)[..., ::2]):
        assert_close_to_torch(call_of((2, 4), attn_mask=mask.detach()), ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
def test_mask_of_another_dtype_is_cast_to_the_query_dtype(dtype: torch.dtype) -> None:
    call = call_of((2, 4))
    mask = torch.randn(5, 7, dtype=dtype, requires_grad=True)
    out = ours(call.query, call.key, call.value, mask)
    expected = F.scaled_dot_product_attention(call.query, call.key, call.value, mask.double())
    torch.testing.assert_close(out, expected)
    [grad] = torch.autograd.grad(out.sum(), mask)
    [truth] = torch.autograd.grad(expected.sum(), mask)
    torch.testing.assert_close(grad, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fully_masked_query_gives_zeros_as_in_torch(dtype: torch.dtype) -> None:
    attends = torch.arange(5).unsqueeze(1).expand(5, 7) > 1
    for mask in (attends, torch.where(attends, 0.0, -torch.inf).to(dtype)):
        call = call_of((2, 4), dtype, attn_mask=mask)
        assert not ours(**vars(call))[..., :2, :].any()
        assert_close_to_torch(call, ours)


GROUPS = [((2, 4), (2, 2), (2, 2)), ((2, 4), (2, 1), (2, 2)), ((4,), (2,), (2,))]
GROUPS += [((3, 2, 4), (3, 2, 2), (3, 2, 2)), ((2, 4), (2, 4), (2, 4))]


@pytest.mark.parametrize("leads", GROUPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_grouped_heads(dtype: torch.dtype, leads: tuple[tuple[int, ...], ...]) -> None:
    query, key, value = leads
    shapes = ((*query, 5, 8), (*key, 7, 8), (*value, 7, 8))
    call = Call(*(random(*s, dtype=dtype) for s in shapes), enable_gqa=True)
    mask = torch.rand(5, 7) < 0.7
    for change in ({}, {"is_causal": True}, {"attn_mask": mask}, {"scale": 0.3}):
        assert_close_to_torch(replace(call, **change), ours)


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.5])
def test_scale(scale: float) -> None:
    assert_close_to_torch(call_of((2, 4), scale=scale), ours)


EMPTY = {
    "no batch": ((0, 2, 5, 8), (0, 2, 7, 8)),
    "no heads": ((2, 0, 5, 8), (2, 0, 7, 8)),
    "no queries": ((2, 2, 0, 8), (2, 2, 7, 8)),
    "no keys": ((2, 2, 5, 8), (2, 2, 0, 8)),
    "no width": ((2, 2, 5, 0), (2, 2, 7, 0)),
    "nothing of 5-D": ((3, 0, 2, 5, 8), (3, 0, 2, 7, 8)),
    "no batch of queries": ((0, 2, 5, 8), (1, 2, 7, 8)),
}


@pytest.mark.parametrize("shapes", EMPTY.values(), ids=EMPTY.keys())
def test_zero_sizes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    query, key = shapes
    call = Call(random(*query), random(*key), random(*key))
    assert_close_to_torch(call, ours)
    assert_close_to_torch(replace(call, is_causal=True), ours)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4, 1.0])
def test_dropout_keeps_the_mean(dropout_p: float) -> None:
    key = torch.zeros(1, 1, 200, 4, dtype=torch.float64)
    value = torch.ones(1, 1, 200, 1, dtype=torch.float64)
    out = ours(key, key, value, dropout_p=dropout_p)
    # 40000 weights: the standard deviation of the mean is 0.4%; the tolerance is 5 times that.
    assert out.mean().item() == pytest.approx(0.0 if dropout_p == 1.0 else 1.0, abs=0.02)


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Tensor]]] = {
    "two lengths": (
        ValueError,
        "key and value of one length, got 3 and 4",
        lambda: ours(random(2, 2, 7, 8), random(2, 2, 3, 8), random(2, 2, 4, 8)),
    ),
    "mask and causal": (
        ValueError,
        "attn_mask or is_causal, got both",
        lambda: ours(**vars(call_of((2,), attn_mask=random(5, 7), is_causal=True))),
    ),
    "one dimension": (
        ValueError,
        r"two or more dimensions, got \[8\]",
        lambda: ours(random(8), random(7, 8), random(7, 8)),
    ),
    "batches": (
        ValueError,
        r"before the heads to broadcast, got key of \[3, 2, 7, 8\] beside 2",
        lambda: ours(random(2, 2, 5, 8), random(3, 2, 7, 8), random(3, 2, 7, 8)),
    ),
    "heads": (
        ValueError,
        "key of 4 heads as query has, or of 1, got 2; enable_gqa=True",
        lambda: ours(random(4, 5, 8), random(2, 7, 8), random(2, 7, 8)),
    ),
    "groups": (
        ValueError,
        "value of 4 heads as query has, or a divisor of that, got 3",
        lambda: ours(random(4, 5, 8), random(2, 7, 8), random(3, 7, 8), enable_gqa=True),
    ),
    "width": (
        ValueError,
        "query and key of one head_dim, got 8 and 6",
        lambda: ours(random(5, 8), random(7, 6), random(7, 6)),
    ),
    "mask shape": (
        ValueError,
        r"attn_mask to broadcast to \[2, 4, 5, 7\], got \[6, 7\]",
        lambda: ours(**vars(call_of((2, 4), attn_mask=random(6, 7)))),
    ),
    "mask of more dimensions": (
        ValueError,
        r"attn_mask to broadcast to \[5, 7\], got \[2, 5, 7\]",
        lambda: ours(**vars(call_of((), attn_mask=random(2, 5, 7)))),
    ),
    "mask dtype": (
        TypeError,
        "dtype bool .* or floating, got Long",
        lambda: ours(**vars(call_of((4,), attn_mask=torch.ones(5, 7, dtype=torch.long)))),
    ),
    "dtypes": (
        TypeError,
        "of one dtype, got Double, Float and Double",
        lambda: ours(random(5, 8), random(7, 8, dtype=torch.float32), random(7, 8)),
    ),
    "integers": (
        TypeError,
        "float32, float64, bfloat16 or float16, got Long",
        lambda: ours(*(torch.ones(5, 8, dtype=torch.long),) * 3),
    ),
    "dropout": (
        ValueError,
        r"probability in \[0, 1\], got 1.5",
        lambda: ours(**vars(call_of((4,), dropout_p=1.5))),
    ),
    "sparse": (
        NotImplementedError,
        "dense tensors, got a sparse or a nested one",
        lambda: ours(torch.ones(5, 8).to_sparse(), torch.ones(7, 8), torch.ones(7, 8)),
    ),
    "nested": (
        NotImplementedError,
        "dense tensors, got a sparse or a nested one",
        lambda: ours(*(torch.nested.nested_tensor([torch.ones(2, 4, 8)]),) * 3),
    ),
}


@pytest.mark.once
@pytest.mark.parametrize(("error", "text", "call"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_invalid_calls_are_refused(
    error: type[Exception], text: str, call: Callable[[], Tensor]
) -> None:
    with pytest.raises(error, match=text):
        call()


def second_gradients(call: Call, function: Callable[..., Tensor]) -> list[Tensor]:
    """Derivatives of a linear function of the gradients, the same function in every dtype."""
    own = call.to(call.query.dtype)
    leaves = [t for t in vars(own).values() if isinstance(t, Tensor) and t.requires_grad]
    out = function(**vars(own))
    generator = torch.Generator().manual_seed(0)

    def along(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).bfloat16().to(x.dtype)

    first = torch.autograd.grad(out, leaves, along(out), create_graph=True)
    return list(torch.autograd.grad(first, leaves, [along(x) for x in leaves]))


@pytest.mark.parametrize("dtype", DTYPES + DTYPES_16BIT, ids=dtype_name)
def test_second_gradients_on_torch_sample_inputs(dtype: torch.dtype) -> None:
    for call in samples(dtype):
        call = replace(call, dropout_p=0.0)
        with sdpa_kernel(SDPBackend.MATH):  # torch's only backend with second derivatives
            truth = second_gradients(call.to(torch.float64), F.scaled_dot_product_attention)
            beside = second_gradients(call, F.scaled_dot_product_attention)
        for mine, theirs, expected in zip(second_gradients(call, ours), beside, truth, strict=True):
            assert mine.shape == expected.shape and mine.dtype == dtype
            # Differences of products of two inputs.
            size = max(1.0, largest(expected), largest(call.query, call.key, call.value) ** 2)
            floor = SECOND_GRADIENT_ROUNDINGS * UNIT_ROUNDOFF[compute_dtype(dtype)] * size
            if dtype in DTYPES_16BIT:  # the result is rounded once more
                floor += UNIT_ROUNDOFF[dtype] * largest(expected) + ABSOLUTE_16BIT[dtype]
            allowed = max(floor, SDPA_FLOAT32_TIMES_TORCH * largest(theirs.double() - expected))
            assert largest(mine.double() - expected) <= allowed
