"""Attention from its definition in plain torch, the reference for the operator.

    scores = cap(scale * query key^T) - slope * |position - key| + bias,   cap(s) = c tanh(s / c)
    weights = softmax(scores)      over the unmasked keys, and a sink without a value
    out = dropout(weights) value,   lse = log(sum(exp(scores)))

It shares no code with the operator: masks, positions and grouped heads are implemented the slow and
obvious way, and derivatives come from torch's autograd.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support.problems import Problem, compute_dtype

NAMES = {
    "query": "dq",
    "key": "dk",
    "value": "dv",
    "bias": "dbias",
    "alibi_slopes": "dslopes",
    "sinks": "dsinks",
}


@dataclass
class Result:
    """out, lse and the gradient of every differentiable input, named as in `NAMES`."""

    out: Tensor
    lse: Tensor
    grads: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        return {"out": self.out, "lse": self.lse, **self.grads}


def with_heads(x: Tensor) -> Tensor:
    """[B, L, D] as [B, 1, L, D]; 4-D tensors unchanged."""
    return x.unsqueeze(1) if x.dim() == 3 else x


def broadcast_bias(
    bias: Tensor, batch: int, heads: int, queries: int, keys: int, rank: int
) -> Tensor:
    """`bias` as [B, H, L, S]; for 3-D inputs it broadcasts to [B, L, S] first."""
    if rank == 3:
        return bias.expand(batch, queries, keys).unsqueeze(1)
    return bias.expand(batch, heads, queries, keys)


def distances(positions: Tensor | None, shape: tuple[int, ...], rank: int) -> Tensor:
    """float64 [B, H, L, S]: key index minus query position, in float64 to avoid overflow."""
    batch, heads, queries, keys = shape
    if positions is None:
        positions = torch.arange(queries) + keys - queries
    if rank == 3:
        positions = positions.expand(batch, queries).unsqueeze(1)
    positions = positions.expand(batch, heads, queries)
    return torch.arange(keys).double() - positions.double().unsqueeze(-1)


def allowed_keys(
    bias: Tensor | None, causal: bool, window: tuple[int, int] | None, distance: Tensor, rank: int
) -> Tensor:
    """bool [B, H, L, S]: True where a query may attend a key."""
    allowed = torch.ones(distance.shape, dtype=torch.bool)
    if bias is not None:
        mask = bias if bias.dtype == torch.bool else bias != -math.inf
        allowed = allowed & broadcast_bias(mask, *distance.shape, rank)
    if causal:
        allowed = allowed & (distance <= 0)
    if window is not None:
        left, right = window
        if left != -1:
            allowed = allowed & (distance >= -left)
        if right != -1:
            allowed = allowed & (distance <= right)
    return allowed


@dataclass
class Scores:
    """The scores of a problem and their parts, [B, H, L, S] each."""

    final: Tensor  # -inf where not allowed
    tangent: Tensor  # tanh of the scaled product over the cap; 0 without one
    distance: Tensor  # |position - key|
    allowed: Tensor
    value: Tensor  # [B, H, S, Dv], one per query head
    scale: float


def scores_and_values(
    inputs: dict[str, Tensor],
    *,
    causal: bool,
    query_positions: Tensor | None,
    window: tuple[int, int] | None,
    softcap: float,
    scale: float | None,
) -> Scores:
    """Scores without the sink, and the values that their weights multiply."""
    rank = inputs["query"].dim()
    query, key, value = (with_heads(inputs[name]) for name in ("query", "key", "value"))
    batch, heads, queries, head_dim = query.shape
    key = key.repeat_interleave(heads // key.size(1), dim=1)
    value = value.repeat_interleave(heads // value.size(1), dim=1)
    shape = (batch, heads, queries, key.size(2))
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim)
    scores = scale * (query @ key.transpose(-1, -2))
    tangent = torch.zeros_like(scores)
    if softcap > 0:
        tangent = torch.tanh(scores / softcap)
        scores = softcap * tangent
    distance = distances(query_positions, shape, rank)
    slopes = inputs.get("alibi_slopes")
    if slopes is not None:
        scores = scores - slopes.unsqueeze(-1).unsqueeze(-1) * distance.abs().to(scores.dtype)
    bias = inputs.get("bias")
    if bias is not None and bias.dtype != torch.bool:
        scores = scores + broadcast_bias(bias, *shape, rank)
    allowed = allowed_keys(bias, causal, window, distance, rank)
    final = scores.masked_fill(~allowed, -math.inf)
    return Scores(final, tangent, distance.abs(), allowed, value, scale)


def float64_inputs(problem: Problem) -> dict[str, Tensor]:
    """The inputs, those in floating point as float64."""
    return {n: t.double() if t.is_floating_point() else t for n, t in problem.inputs.items()}


def scores_of(inputs: dict[str, Tensor], options: dict[str, Any]) -> Scores:
    """Scores and values for the options of a problem."""
    return scores_and_values(
        inputs,
        causal=options["causal"],
        query_positions=options.get("query_positions"),
        window=options["window"],
        softcap=options["softcap"],
        scale=options["scale"],
    )


def with_sink(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """[B, H, L, S + 1]: the scores with the sink of the head as an extra column."""
    if sinks is None:
        return scores
    column = sinks.unsqueeze(-1).unsqueeze(-1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1)


def log_sum_exp(scores: Tensor) -> Tensor:
    """log(sum(exp(scores))) over the keys; 0 if there are none.

    Not torch.logsumexp: its gradient is exp(score - lse), which loses the digits of log(sum) where
    |lse| is large.
    """
    if scores.size(-1) == 0:
        return scores.sum(-1)
    largest = scores.detach().amax(-1, keepdim=True)
    return largest.squeeze(-1) + (scores - largest).exp().sum(-1).log()


def attention(
    inputs: dict[str, Tensor],
    *,
    causal: bool = False,
    query_positions: Tensor | None = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(out, lse) in the dtype of the inputs.

    keep: bool [B, H, L, S], True for the weights that dropout keeps.
    """
    parts = scores_and_values(
        inputs,
        causal=causal,
        query_positions=query_positions,
        window=window,
        softcap=softcap,
        scale=scale,
    )
    scores = with_sink(parts.final, inputs.get("sinks"))
    # A fully masked row has weights 0 and lse -inf. Its scores become 0 so that no gradient is NaN.
    empty = ~parts.allowed.any(-1, keepdim=True)
    if "sinks" in inputs:
        empty = torch.zeros_like(empty)
    scores = scores.masked_fill(empty, 0.0)
    weights = torch.softmax(scores, -1).masked_fill(empty, 0.0)[..., : parts.final.size(-1)]
    lse = log_sum_exp(scores).masked_fill(empty.squeeze(-1), -math.inf)
    if keep is not None:
        weights = weights * keep / (1.0 - dropout) if dropout < 1.0 else weights * 0.0
    out = weights @ parts.value
    if inputs["query"].dim() == 3:
        out, lse = out.squeeze(1), lse.squeeze(1)
    return out, lse


def dropout_keep(problem: Problem) -> Tensor | None:
    """The dropout mask of `problem` after torch.manual_seed(problem.seed)."""
    if problem.options["dropout"] == 0.0:
        return None
    torch.manual_seed(problem.seed)
    return torch.ops.flash.dropout_mask(*problem.dropout_shape(), problem.options["dropout"])


def dropout_factor(problem: Problem) -> Tensor:
    """What dropout multiplies the weights by, in float64: 0 or 1 / (1 - dropout); 1 without it."""
    keep, dropout = dropout_keep(problem), problem.options["dropout"]
    if keep is None:
        return torch.ones((), dtype=torch.float64)
    return keep.double() / (1.0 - dropout) if dropout < 1.0 else torch.zeros_like(keep.double())


def differentiate(
    call: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]], problem: Problem, dtype: torch.dtype
) -> Result:
    """(out, lse) of `call` and the gradients for the problem's output gradients, in `dtype`."""
    leaves = problem.leaves(dtype)
    out, lse = call(leaves)
    grads: dict[str, Tensor] = {}
    if problem.differentiable:
        cotangents = (problem.grad_out.to(dtype), problem.grad_lse.to(compute_dtype(dtype)))
        values = torch.autograd.grad(
            (out, lse), [leaves[name] for name in problem.differentiable], cotangents
        )
        grads = {
            NAMES[name]: value for name, value in zip(problem.differentiable, values, strict=True)
        }
    return Result(out.detach(), lse.detach(), grads)


def fingerprint(problem: Problem) -> bytes:
    """A hash of the elements and options, independent of memory addresses and strides."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            add((value.dtype, tuple(value.shape)))
            own = value.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
            digest.update(own.view(-1).view(torch.uint8).numpy())
        else:
            digest.update(repr(value).encode())

    for name, value in (problem.inputs | problem.options).items():
        add(name)
        add(value)
    for value in (problem.grad_out, problem.grad_lse, problem.differentiable, problem.seed):
        add(value)
    return digest.digest()


# Results by `fingerprint`: a test needs the same reference on every instruction set.
MEMO: dict[tuple[object, ...], Any] = {}


def memoized(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Caches `compute(problem, ...)` by fingerprint in MEMO."""

    @functools.wraps(compute)
    def once(problem: Problem, *arguments: object) -> Any:
        key = (compute.__name__, fingerprint(problem), *arguments)
        if key not in MEMO:
            MEMO[key] = compute(problem, *arguments)
        return MEMO[key]

    return once


@memoized
def definition(problem: Problem, dtype: torch.dtype) -> Result:
    """The definition evaluated in `dtype`: float64 is the reference, float32 the math path."""
    options = {k: v for k, v in problem.options.items() if k not in ("block_size", "use_simd")}
    keep = dropout_keep(problem)
    return differentiate(lambda x: attention(x, keep=keep, **options), problem, dtype)


def group_sum(x: Tensor, like: Tensor) -> Tensor:
    """Sums the query heads of x [B, H, ...] that share a head of `like`."""
    like = with_heads(like)
    return x.unflatten(1, (like.size(1), -1)).sum(2)


@dataclass
class ErrorSize:
    """The size of the errors in one tensor."""

    rms: float
    largest: float


@memoized
def operand_rounding(problem: Problem) -> dict[str, float]:
    """The largest expected error of a result, in units of the rounding of an operand.

    Matrix tiles round weights and score gradients to bfloat16, where they become operands of a
    product. Each rounding is independent, so the errors add in quadrature, as in `rounding_model`.
    All else is float32. The backward subtracts dO . O from every gradient of a row, with the error
    of the row's output.
    """
    inputs = float64_inputs(problem)
    parts = scores_of(inputs, problem.options)
    query, key = with_heads(inputs["query"]), with_heads(inputs["key"])
    every_key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    every_weight = torch.softmax(with_sink(parts.final, inputs.get("sinks")), -1).nan_to_num(0.0)
    weights = every_weight[..., : parts.final.size(-1)]
    kept = dropout_factor(problem)
    grad_out = with_heads(problem.grad_out.double())
    dropped = weights * kept
    delta = (grad_out * (dropped @ parts.value)).sum(-1, keepdim=True)
    delta = delta - problem.grad_lse.double().view(*weights.shape[:3], 1)
    grad_weights = grad_out @ parts.value.mT
    delta_error = (dropped**2 * grad_weights**2).sum(-1, keepdim=True)
    passed = parts.scale * weights * (1.0 - parts.tangent**2)
    dproduct = (passed * (grad_weights * kept - delta)) ** 2
    dproduct_error = dproduct + passed**2 * delta_error
    squares = {
        "out": dropped**2 @ parts.value**2,
        "dq": dproduct @ every_key**2 + (passed @ every_key) ** 2 * delta_error,
        "dk": group_sum(dproduct_error.mT @ query**2, key),
        "dv": group_sum((dropped**2).mT @ grad_out**2, inputs["value"]),
    }
    if "bias" in problem.differentiable:
        # A row's error is common to all of its keys, and so to the sum over them.
        one_for_all_keys = inputs["bias"].dim() == 0 or inputs["bias"].size(-1) == 1
        row = weights.sum(-1, keepdim=True) if one_for_all_keys else weights
        target = row**2 * delta_error
        target = target.squeeze(1) if problem.inputs["query"].dim() == 3 else target
        squares["dbias"] = target.sum_to_size(inputs["bias"].shape)
    if "alibi_slopes" in problem.differentiable:
        row = (weights * parts.distance).sum(-1) ** 2 * delta_error.squeeze(-1)
        squares["dslopes"] = row.sum(-1).sum_to_size(inputs["alibi_slopes"].shape)
    if "sinks" in problem.differentiable:
        row = every_weight[..., -1:] ** 2 * delta_error
        squares["dsinks"] = row.sum((2, 3)).sum_to_size(inputs["sinks"].shape)
    return {n: math.sqrt(x.max().item()) if x.numel() else 0.0 for n, x in squares.items()}


@memoized
def rounding_model(problem: Problem) -> dict[str, ErrorSize]:
    """Expected error of each result, in units of one rounding, to first order.

    Every product, exponential and output has one independent relative rounding error, so errors add
    in quadrature: the error of sum(w v) is sqrt(sum(w^2 v^2)) units.

    The gradient of a score is a difference of two dot products of Dv terms, whose partial sums
    round too: 2 units each. With one key, or one that outweighs the rest, the dot products are
    equal and only those roundings remain.

    Weights and products with them are summed sequentially, up to 128 at a time. The sum of n equal
    terms rounds n partial sums; their squares add up to n / 3 times that of the whole sum. A
    uniformly distributed rounding error has a mean square of a third of a unit squared: together
    n / 9. The error of a row sum is common to all weights of the row, and so to the output, the
    gradient of the query, and the row's contribution to the gradient of a slope.

    The derivative of the cap, 1 - tanh^2, has the rounding errors of tanh^2 and the propagated
    error of the product.
    """
    inputs, options = float64_inputs(problem), problem.options
    parts = scores_of(inputs, options)
    scores, value, scale = parts.final, parts.value, parts.scale
    query, key = with_heads(inputs["query"]), with_heads(inputs["key"])
    every_key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    every_weight = torch.softmax(with_sink(scores, inputs.get("sinks")), -1).nan_to_num(0.0)
    weights = every_weight[..., : scores.size(-1)]
    kept = dropout_factor(problem)
    grad_out = with_heads(problem.grad_out.double())
    grad_lse = problem.grad_lse.double().view(*weights.shape[:3], 1)

    out = (weights * kept) @ value
    product_error = scale**2 * query**2 @ (every_key**2).mT
    slope_of_cap = 1.0 - parts.tangent**2
    score_error = product_error * slope_of_cap**2 + scores.masked_fill(weights == 0, 0) ** 2
    score_error = score_error + (options["softcap"] * parts.tangent) ** 2
    if "alibi_slopes" in inputs:
        slopes = inputs["alibi_slopes"].unsqueeze(-1).unsqueeze(-1)
        score_error = score_error + (slopes * parts.distance).masked_fill(weights == 0, 0) ** 2
    sum_error = min(scores.size(-1), 128) / 9.0
    weight_error = weights**2 * (1.0 + sum_error + score_error)
    dropped_error = weight_error * kept**2
    delta = (grad_out * out).sum(-1, keepdim=True)
    delta = delta - grad_lse
    slope = (grad_out @ value.mT) * kept - delta
    slope_error = (grad_out**2 @ (value**2).mT) * kept**2
    delta_error = (grad_out**2 * out**2).sum(-1, keepdim=True)
    slope_error = 2.0**2 * (slope_error + delta_error)
    dscore_error = weight_error * slope**2 + weights**2 * slope_error
    dproduct_error = dscore_error
    if options["softcap"] > 0:
        moved = (2.0 * parts.tangent * slope_of_cap / options["softcap"]) ** 2 * product_error
        cap_error = 4.0 * parts.tangent**4 + slope_of_cap**2 + moved
        dproduct_error = dscore_error * slope_of_cap**2 + (weights * slope) ** 2 * cap_error
    dq = scale * (weights * slope * slope_of_cap) @ every_key
    squares = {
        "out": dropped_error @ value**2 + sum_error * out**2,
        "lse": 1.0 + sum_error + torch.where(weights > 0, score_error, 0.0),
        "dq": scale**2 * dproduct_error @ every_key**2 + sum_error * dq**2,
        "dk": group_sum(scale**2 * dproduct_error.mT @ query**2, key),
        "dv": group_sum(dropped_error.mT @ grad_out**2, inputs["value"]),
    }
    if "bias" in problem.differentiable:
        rank = problem.inputs["query"].dim()
        target = dscore_error.squeeze(1) if rank == 3 else dscore_error
        squares["dbias"] = target.sum_to_size(inputs["bias"].shape)
    if "alibi_slopes" in problem.differentiable:
        row = (weights * slope * parts.distance).sum(-1)  # has the error of the row sum
        by_head = (dscore_error * parts.distance**2).sum((-2, -1))
        by_head = by_head + (1.0 + sum_error) * (row**2).sum(-1)
        squares["dslopes"] = by_head.sum_to_size(inputs["alibi_slopes"].shape)
    if "sinks" in problem.differentiable:
        weight = every_weight[..., -1:]
        relative_error = 1.0 + sum_error + (weights**2 * score_error).sum(-1, keepdim=True)
        out_error = (grad_out**2 * squares["out"]).sum(-1, keepdim=True)
        row_error = weight**2 * (relative_error * delta**2 + delta_error + out_error)
        squares["dsinks"] = row_error.sum((2, 3)).sum_to_size(inputs["sinks"].shape)
    return {
        name: ErrorSize(math.sqrt(x.mean().item()), math.sqrt(x.max().item()))
        if x.numel()
        else ErrorSize(0, 0)
        for name, x in squares.items()
    }
