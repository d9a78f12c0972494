"""NaN and Inf in the inputs: the results by definition, forward and backward.

A masked pair of query and key contributes nothing, whatever its tensors hold. An unmasked pair
contributes by IEEE arithmetic. One case may or may not give NaN: a weight that underflows is either
0 or a small number; 0 times an infinity is NaN, a small number times it is not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import flash_attention
import torch
from torch import Tensor

from support.checks import run
from support.instruction_sets import WITH_TILES, active
from support.problems import DTYPES_16BIT, Problem, compute_dtype
from support.reference import (
    NAMES,
    float64_inputs,
    group_sum,
    log_sum_exp,
    scores_of,
    with_heads,
    with_sink,
)
from support.tolerances import (
    ABSOLUTE_16BIT,
    CLOSE,
    FLOAT32_UNDERFLOW,
    FUZZ_NON_FINITE_TIMES_CLOSE,
    TILE_SIZE_ROUNDED,
    UNIT_ROUNDOFF,
)


def poison(problem: Problem, rng: random.Random) -> None:
    """Writes NaN or an infinity to a few places of one tensor."""
    tensors = dict(problem.inputs, grad_out=problem.grad_out, grad_lse=problem.grad_lse)
    names = [n for n, t in tensors.items() if t.is_floating_point() and t.numel()]
    name = rng.choice(names)
    # No infinities in value and gradients: the weight that multiplies them may underflow.
    finite_weights = name in ("query", "key", "bias", "alibi_slopes", "sinks")
    non_finite = rng.choice([math.nan, math.inf, -math.inf]) if finite_weights else math.nan
    own = tensors[name].clone(memory_format=torch.contiguous_format)
    flat = own.view(-1) if rng.random() < 0.8 or own.dim() < 2 else own.flatten(0, -2)
    for _ in range(rng.choice([1, 1, 3])):
        flat[rng.randrange(flat.size(0))] = non_finite
    if name in problem.inputs:
        problem.inputs[name] = own
    else:
        setattr(problem, name, own)


@dataclass
class Expected:
    """A result: its values where not NaN, where it must be NaN, and where it may be."""

    values: Tensor
    certain: Tensor
    possible: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Expected:
        """The same for a sum `function` over elements, in which one NaN gives NaN."""
        certain = function(self.certain.double()) > 0
        possible = function(self.possible.double()) > 0
        return Expected(function(self.values), certain, possible)


def nan_pattern(weight: Tensor, pairs: Tensor, other: Tensor) -> Tensor:
    """Where the sum over `pairs` of weight[.., n, m] * other[.., m, d] is NaN."""
    nan_weight = (pairs & weight.isnan()).any(-1, keepdim=True)
    # An infinity gives NaN times NaN or 0, and with no other factor that occurs here.
    nan_other = pairs.double() @ other.isnan().double() > 0
    zero_times_infinity = (pairs & (weight == 0)).double() @ other.isinf().double() > 0
    return nan_weight | nan_other | zero_times_infinity


def attended_product(
    weight: Tensor, possible_weight: Tensor, pairs: Tensor, certain: Tensor, other: Tensor
) -> Expected:
    """The sum over `pairs` of weight[.., n, m] * other[.., m, d].

    possible_weight: `weight` with NaN wherever one is possible.
    certain: the pairs whose weight is far from underflow.
    """
    values = weight.masked_fill(~pairs, 0).nan_to_num(0, 0, 0) @ other.nan_to_num(0, 0, 0)
    nonzero = (pairs & weight.isfinite() & (weight != 0)).double() @ other.isinf().double() > 0
    possible = nan_pattern(possible_weight, pairs, other) | nonzero
    return Expected(values, nan_pattern(weight, certain, other), possible)


def non_finite_definition(problem: Problem) -> dict[str, Expected]:
    """out, lse and every gradient by definition, in float64."""
    inputs, options = float64_inputs(problem), problem.options
    parts = scores_of(inputs, options)
    pairs, value = parts.allowed, parts.value
    query, key = with_heads(inputs["query"]), with_heads(inputs["key"])
    every_key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    scores = with_sink(parts.final, inputs.get("sinks"))
    empty = ~pairs.any(-1, keepdim=True)
    if "sinks" not in inputs:
        scores = scores.masked_fill(empty, 0.0)
    every_weight = torch.softmax(scores, -1)
    weight = every_weight[..., : pairs.size(-1)]
    certain = pairs & ~(weight < FLOAT32_UNDERFLOW)
    # In a fully masked row the sum is the sink alone, however large.
    nothing = torch.full((), -math.inf, dtype=torch.float64)
    alone = scores[..., -1] if "sinks" in inputs else nothing
    lse = torch.where(empty.squeeze(-1), alone, log_sum_exp(scores))
    # There, the weight of an infinite sink may be 1 or NaN.
    undetermined_rows = empty & ~alone.isfinite().unsqueeze(-1) & (alone != -math.inf).unsqueeze(-1)

    out = attended_product(weight, weight, pairs, certain, value)
    out.possible |= undetermined_rows
    grad_out = with_heads(problem.grad_out.double())
    grad_lse = problem.grad_lse.double().view(*weight.shape[:3], 1)
    by_weight = grad_out @ value.mT

    def delta_with(nan: Tensor) -> Tensor:
        delta = (grad_out * out.values.masked_fill(nan, math.nan)).sum(-1, keepdim=True)
        return delta.masked_fill(empty, 0.0) - grad_lse

    slope_of_cap = 1.0 - parts.tangent**2 if options["softcap"] > 0 else torch.ones(())
    deltas = [delta_with(out.certain), delta_with(out.possible)]
    dscore, possible_dscore = (weight * (by_weight - delta) for delta in deltas)
    dproduct, possible_dproduct = (
        parts.scale * x * slope_of_cap for x in (dscore, possible_dscore)
    )
    found = {
        "out": out,
        "dq": attended_product(dproduct, possible_dproduct, pairs, certain, every_key),
        "dk": attended_product(dproduct.mT, possible_dproduct.mT, pairs.mT, certain.mT, query).map(
            lambda x: group_sum(x, key)
        ),
        "dv": attended_product(weight.mT, weight.mT, pairs.mT, certain.mT, grad_out).map(
            lambda x: group_sum(x, inputs["value"])
        ),
    }
    each = Expected(
        dscore.masked_fill(~pairs, 0).nan_to_num(0, 0, 0),
        certain & dscore.isnan(),
        pairs & possible_dscore.isnan(),
    )
    if "bias" in problem.differentiable:
        three = inputs["query"].dim() == 3
        shape = inputs["bias"].shape
        found["dbias"] = each.map(lambda x: (x.squeeze(1) if three else x).sum_to_size(shape))
    if "alibi_slopes" in problem.differentiable:
        slopes = inputs["alibi_slopes"].shape
        distances = Expected(-each.values * parts.distance, each.certain, each.possible)
        found["dslopes"] = distances.map(lambda x: x.sum((-2, -1)).sum_to_size(slopes))
    if "sinks" in problem.differentiable:
        sinks = inputs["sinks"].shape
        sink = every_weight[..., -1:]
        rows, possible_rows = (-sink * delta for delta in deltas)
        certain_nan = rows.isnan() & ~(sink < FLOAT32_UNDERFLOW) & ~empty
        possible_nan = possible_rows.isnan() | undetermined_rows
        found["dsinks"] = Expected(rows.nan_to_num(0, 0, 0), certain_nan, possible_nan).map(
            lambda x: x.sum((-2, -1)).sum_to_size(sinks)
        )
    if inputs["query"].dim() == 3:
        for name in ("out", "dq", "dk", "dv"):
            found[name] = found[name].map(lambda x: x.squeeze(1))
        lse = lse.squeeze(1)
    undetermined_lse = undetermined_rows.view(lse.shape)
    found["lse"] = Expected(lse, lse.isnan() & ~undetermined_lse, lse.isnan() | undetermined_lse)
    wanted = {"out", "lse", *(NAMES[n] for n in problem.differentiable)}
    return {name: result for name, result in found.items() if name in wanted}


def error_message(name: str, actual: Tensor, expected: Expected, dtype: torch.dtype) -> str | None:
    """Describes the mismatch of one result, or None."""
    is_rounded = dtype in DTYPES_16BIT and name != "lse"
    assert actual.shape == expected.values.shape, (name, actual.shape, expected.values.shape)
    is_nan = actual.isnan()
    leaks, lost = is_nan & ~expected.possible, expected.certain & ~is_nan
    if leaks.any() or lost.any():
        return f"{name}: NaN in {leaks.sum()} wrong places, missing in {lost.sum()}"
    compared = ~expected.possible & ~is_nan
    found, truth = actual[compared].double(), expected.values[compared]
    if found.numel() == 0 or torch.equal(found, truth):
        return None
    finite = truth[truth.isfinite()].abs()
    size = max(1.0, finite.max().item()) if finite.numel() else 1.0
    allowed = FUZZ_NON_FINITE_TIMES_CLOSE * CLOSE[compute_dtype(dtype)] * size
    if is_rounded:
        allowed = allowed + UNIT_ROUNDOFF[dtype] * truth.abs() + ABSOLUTE_16BIT[dtype]
    if dtype == torch.bfloat16 and is_rounded and active() in WITH_TILES:
        allowed = allowed + TILE_SIZE_ROUNDED * size
    excess = (
        ((found - truth).abs() - allowed).masked_fill(found == truth, -1.0).nan_to_num(math.inf)
    )
    if excess.max() <= 0:
        return None
    worst = excess.argmax()
    return f"{name}: expected {truth[worst].item():.6g}, got {found[worst].item():.6g}"


def check_non_finite(problem: Problem, expected: dict[str, Expected]) -> None:
    """Checks forward and backward, and the forward without gradients."""
    tensors = run(problem).tensors()
    assert tensors.keys() == expected.keys()
    results = list(tensors.items())
    with torch.no_grad():
        results.append(("out", flash_attention.attention(**problem.inputs, **problem.options)))
    messages = [error_message(n, t, expected[n], problem.dtype) for n, t in results]
    failures = [c for c in messages if c is not None]
    assert not failures, f"{problem.spec}\n" + "\n".join(failures)
