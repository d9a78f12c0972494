"""Attention of one sequence whose rows are on several processes."""

from __future__ import annotations

import numbers
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from flash_attention.distributed.agreement import agree, digest
from flash_attention.distributed.all_gather import AllGather
from flash_attention.distributed.call import Call, Inputs, Method
from flash_attention.distributed.communication import Channel
from flash_attention.distributed.parts import Options, Saved, gradient_of_sinks
from flash_attention.distributed.ring import Ring
from flash_attention.distributed.sequence import LoadBalance, check_load_balance, layout_of
from flash_attention.distributed.ulysses import Ulysses, head_groups

__all__ = [
    "LoadBalance",
    "MethodName",
    "context_parallel_attention",
    "context_parallel_attention_with_lse",
]

MethodName = Literal["ring", "all_gather", "ulysses"]
METHODS: dict[str, Method] = {"ring": Ring(), "all_gather": AllGather(), "ulysses": Ulysses()}
NAME = "context_parallel_attention"


def context_parallel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    method: MethodName = "ring",
    load_balance: LoadBalance | None = None,
) -> Tensor:
    """`attention` of a sequence whose rows are divided among the processes of a group.

    Every process calls it with the rows that it holds, and gets the same rows of the output. The
    backward is divided in the same way, and every process must run it. Gradients are those of the
    sum of the losses of all processes; `alibi_slopes` and `sinks`, which every process has, get
    the terms of that sum which this process computes, as the other parameters of a model do. Sum
    them over the group.

    Sources: Liu et al., Ring attention with blockwise transformers for near-infinite context
    (arXiv:2310.01889), section 3; Jacobs et al., DeepSpeed Ulysses (arXiv:2309.14509), section 3.

    Args:
        query: [B, H, L_r, D], the rows of this process, of a dtype that `attention` takes, on the
            CPU. L_r may differ between processes, and be 0; the rest is the same on all.
        key: [B, Hk, L_r, D], the same rows.
        value: [B, Hv, L_r, Dv], the same rows.
        group: the processes; None means all. It needs a backend for the CPU, such as Gloo.
        causal, window, alibi_slopes, softcap, sinks, scale: as in `attention` of the whole
            sequence, and equal on all processes.
        dropout: as in `attention`. The first process of the group draws the seed. A weight is
            dropped according to its place in the whole sequence, so that any number of processes
            drops the same.
        method: "ring": keys and values travel in parts, which are computed while the next arrive,
            in O(L/W) memory on W processes. "all_gather": each process collects the keys and values
            that its queries attend, and computes the bits that one process would, in O(L) memory.
            "ulysses": each process computes all rows of some heads, in O(L/W) memory for as many
            heads as processes; H, Hk and Hv must have a common divisor of at least W.
        load_balance: "zigzag": the rows are those that `shard_sequence` gives with it, an early and
            a late part of the sequence, so that a causal mask leaves every process the same work.
            None: process r holds the rows after those of process r - 1.

    Returns:
        [B, H, L_r, Dv], in the dtype of `query`.

    Raises:
        TypeError, ValueError: arguments that `attention` of the whole sequence refuses, a `method`
            or `load_balance` that does not exist, or arguments that differ between the processes.
            They are raised on every process, if each makes a call.
        NotImplementedError: tensors that are not on the CPU, or a second derivative.
        RuntimeError: no process group, a process outside of it, or a process that has ended or
            does not make the call within the timeout of the group.
    """
    return context_parallel_attention_with_lse(
        query,
        key,
        value,
        group=group,
        causal=causal,
        window=window,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        scale=scale,
        dropout=dropout,
        method=method,
        load_balance=load_balance,
    )[0]


@torch.compiler.disable
def context_parallel_attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    method: MethodName = "ring",
    load_balance: LoadBalance | None = None,
) -> tuple[Tensor, Tensor]:
    """Like `context_parallel_attention`, and also returns the log-sum-exp of each row.

    Args:
        query, key, value, group, causal, window, alibi_slopes, softcap, sinks, scale, dropout,
            method, load_balance: as in `context_parallel_attention`.

    Returns:
        The output, and lse [B, H, L_r] as that of `attention_with_lse`. Both are differentiable.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as `context_parallel_attention`.
    """
    channel = Channel(group)
    seed = torch.zeros(1, dtype=torch.int64)
    rows, sides = 0, [-1, -1]
    described: dict[str, object] = {}
    error: Exception | None = None
    try:
        query, key, value = map(_under_autocast, (query, key, value))
        sides = _check(
            channel,
            Inputs(query, key, value, alibi_slopes, sinks),
            causal,
            window,
            softcap,
            scale,
            dropout,
            method,
            load_balance,
        )
        rows = query.size(2)
        if dropout > 0:
            seed = _draw_seed(dropout)
        described = {
            "method": method,
            "load_balance": load_balance,
            "dtype": str(query.dtype),
            "batch size": query.size(0),
            "number of query heads": query.size(1),
            "number of key heads": key.size(1),
            "number of value heads": value.size(1),
            "head_dim": query.size(3),
            "width of value": value.size(3),
            "causal": bool(causal),
            "window": sides,
            "softcap": float(softcap),
            "scale": None if scale is None else float(scale),
            "dropout": float(dropout),
            "alibi_slopes": digest(alibi_slopes),
            "sinks": digest(sinks),
            "choice of gradients (query, key, value, alibi_slopes, sinks)": [
                x is not None and x.requires_grad and torch.is_grad_enabled()
                for x in (query, key, value, alibi_slopes, sinks)
            ],
        }
    except Exception as refused:  # the other processes wait for an answer
        error = refused
    shared = agree(channel, NAME, described, rows, int(seed), error)
    layout = layout_of(NAME, shared.lengths, load_balance)
    options = Options(
        causal=bool(causal),
        window=(sides[0], sides[1]),
        softcap=float(softcap),
        scale=scale,
        dropout=float(dropout),
        seed=seed.fill_(shared.seed),
        heads=query.size(1),
    )
    call = Call(channel, layout, options)
    out, lse = _ContextParallel.apply(call, METHODS[method], query, key, value, alibi_slopes, sinks)
    return out, lse


def _under_autocast(x: Tensor) -> Tensor:
    lowers = (
        isinstance(x, Tensor)
        and torch.is_autocast_enabled("cpu")
        and x.is_floating_point()
        and x.dtype is not torch.float64
    )
    return x.to(torch.get_autocast_dtype("cpu")) if lowers else x


def _check(
    channel: Channel,
    inputs: Inputs,
    causal: bool,
    window: Any,
    softcap: float,
    scale: float | None,
    dropout: float,
    method: str,
    load_balance: str | None,
) -> list[int]:
    """Raises for arguments that no process accepts; the window as two numbers."""
    query, key, value = inputs[:3]
    if method not in get_args(MethodName):  # which may be of any type
        raise ValueError(
            f"{NAME}: expected method as one of {', '.join(get_args(MethodName))}, got {method!r}"
        )
    check_load_balance(NAME, load_balance)
    for name, x in zip(("query", "key", "value", "alibi_slopes", "sinks"), inputs, strict=True):
        if x is None and name in ("alibi_slopes", "sinks"):
            continue
        if not isinstance(x, Tensor) or isinstance(x, DTensor):
            raise TypeError(
                f"{NAME}: expected {name} as a plain tensor with the rows of this process, got "
                f"{type(x).__name__}; call .to_local() of a DTensor"
            )
        if x.device.type != "cpu":
            raise NotImplementedError(
                f"{NAME}: expected tensors on the CPU, got {name} on {x.device}; move it with "
                ".cpu()"
            )
        if x.layout is not torch.strided:
            raise TypeError(f"{NAME}: expected {name} as a dense tensor, got {x.layout}")
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(
            f"{NAME}: expected query, key and value as [batch, heads, length, head_dim], got query "
            f"{list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
        )
    if query.size(2) != key.size(2):
        raise ValueError(
            f"{NAME}: expected the same rows of query, key and value, got {query.size(2)} of query "
            f"and {key.size(2)} of key"
        )
    # The rest is as for the operator, which knows the messages.
    torch.ops.flash.attention(
        *(x.detach().to("meta") for x in (query, key, value)),
        causal=causal,
        window=window,
        alibi_slopes=None if inputs.slopes is None else inputs.slopes.detach().to("meta"),
        softcap=softcap,
        sinks=None if inputs.sinks is None else inputs.sinks.detach().to("meta"),
        scale=scale,
        dropout=dropout,
    )
    groups = head_groups(key.size(1), value.size(1))
    if method == "ulysses" and groups < channel.size:
        raise ValueError(
            f"{NAME}: expected the heads of key and value, {key.size(1)} and {value.size(1)}, to "
            f"have a common divisor of at least the {channel.size} processes for method='ulysses', "
            f"got {groups}; use method='ring'"
        )
    if window is None:
        return [-1, -1]
    return [
        int(side) for side in ([window] * 2 if isinstance(window, numbers.Integral) else window)
    ]


def _draw_seed(dropout: float) -> Tensor:
    """The seed that `attention` would draw from torch's CPU generator, int64 [1]."""
    nothing = torch.empty(0, 1, 1)
    return torch.ops.flash._forward(nothing, nothing, nothing, dropout=dropout)[2]


class _ContextParallel(torch.autograd.Function):
    """Runs a method with a graph of its own for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        method: Method,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slopes: Tensor | None,
        sinks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # Terms of the gradient of slopes are summed before they are rounded.
        computed = torch.float64 if query.dtype is torch.float64 else torch.float32
        inputs = Inputs(query, key, value, None if slopes is None else slopes.to(computed), sinks)
        result = method.forward(call, inputs)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.method = call, method
        ctx.needed = tuple(ctx.needs_input_grad[2:])
        ctx.save_for_backward(
            query, key, value, slopes, sinks, result.out, result.row_stats, *result.kept
        )
        row_max, row_sum = result.row_stats
        return result.out.to(query.dtype), row_sum.log().add_(row_max)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, slopes, sinks, out, row_stats, *kept = ctx.saved_tensors
        grad_out, grad_lse = grads
        with torch.no_grad():
            # Also if the loss of this process depends on neither: the others wait for its part.
            cotangent = torch.zeros_like(out) if grad_out is None else grad_out
            saved = Saved(out, row_stats, cotangent, grad_lse)
            computed = None if slopes is None else slopes.to(row_stats.dtype)
            inputs = Inputs(query, key, value, computed, sinks)
            found = ctx.method.backward(ctx.call, inputs, tuple(kept), saved, ctx.needed[:4])
            of_sinks = gradient_of_sinks(sinks, saved) if ctx.needed[4] else None
            gradients = [
                g.to(x.dtype) if g is not None and needed else None
                for g, x, needed in zip(
                    found, (query, key, value, slopes), ctx.needed, strict=False
                )
            ]
        if torch.is_grad_enabled():  # create_graph=True
            computed_from = [x for x in (grad_out, grad_lse, query, key, value) if x is not None]
            gradients = _FirstDerivative.over([*gradients, of_sinks], computed_from)
        else:
            gradients.append(of_sinks)
        return (None, None, *gradients)


class _FirstDerivative(torch.autograd.Function):
    """The identity on gradients, which refuses to be differentiated."""

    @staticmethod
    def over(gradients: list[Tensor | None], inputs: list[Tensor]) -> list[Tensor | None]:
        """`gradients` as functions of `inputs` whose derivative is an error."""
        present = [g for g in gradients if g is not None]
        recorded = iter(_FirstDerivative.apply(len(present), *present, *inputs))
        return [None if g is None else next(recorded) for g in gradients]

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            f"{NAME}: expected a first derivative, got a request for a second one, which is not "
            "implemented; flash_attention.attention has it, on one process"
        )
