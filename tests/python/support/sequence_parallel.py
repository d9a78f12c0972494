"""One call of attention, by one process and by all processes of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flash_attention
import torch
import torch.distributed as dist
from torch import Tensor

from support.tolerances import CLOSE, FLOAT64_ABSOLUTE

# float64: both within FLOAT64_ABSOLUTE of the exact result. Otherwise CLOSE, for values of order 1;
# gradients of keys, slopes and sinks are sums over some hundred rows that reach 10.
GRADIENT_SLACK = 10.0


@dataclass(frozen=True)
class Case:
    """A call, and how its rows are divided."""

    method: str = "ring"
    length: int = 150
    heads: tuple[int, int, int] = (4, 4, 4)  # H, Hk, Hv
    widths: tuple[int, int] = (16, 16)  # D, Dv
    dtype: torch.dtype = torch.float64
    lengths: tuple[int, ...] | None = None  # of each process; None: those of shard_sequence
    load_balance: str | None = None
    causal: bool = False
    window: tuple[int, int] | None = None
    slopes: str | None = None  # "H" or "BH"
    sinks: str | None = None
    softcap: float = 0.0
    scale: float | None = None
    dropout: float = 0.0

    def options(self) -> dict[str, Any]:
        names = ("causal", "window", "softcap", "scale", "dropout")
        return {name: getattr(self, name) for name in names}


BATCH = 2


def make_inputs(case: Case) -> dict[str, Tensor]:
    """The whole tensors and the cotangents, the same on every process."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(case.dtype)

    heads, key_heads, value_heads = case.heads
    width, value_width = case.widths
    inputs = {
        "query": normal(BATCH, heads, case.length, width),
        "key": normal(BATCH, key_heads, case.length, width),
        "value": normal(BATCH, value_heads, case.length, value_width),
        "grad_out": normal(BATCH, heads, case.length, value_width),
        "grad_lse": normal(BATCH, heads, case.length),
    }
    shapes = {"H": (heads,), "BH": (BATCH, heads)}
    if case.slopes is not None:
        inputs["alibi_slopes"] = normal(*shapes[case.slopes]).abs() / 10
    if case.sinks is not None:
        inputs["sinks"] = normal(*shapes[case.sinks])
    return inputs


def cut(case: Case, x: Tensor) -> Tensor:
    """The rows of this process."""
    if case.lengths is not None:
        return x.split(case.lengths, 2)[dist.get_rank()]
    from flash_attention.distributed import shard_sequence

    return shard_sequence(x, 2, load_balance=case.load_balance)


def _run(
    function: Any, tensors: dict[str, Tensor], options: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """out, lse and gradients of sum(out * grad_out) + sum(lse * grad_lse)."""
    names = [n for n in ("query", "key", "value", "alibi_slopes", "sinks") if n in tensors]
    leaves = {n: tensors[n].detach().clone().requires_grad_() for n in names}
    torch.manual_seed(7)
    out, lse = function(**leaves, **options)
    loss = (out * tensors["grad_out"]).sum() + (lse * tensors["grad_lse"]).sum()
    loss.backward()
    return out.detach(), lse.detach(), {n: leaves[n].grad for n in names}


def compare(case: Case) -> None:
    """Raises AssertionError if this process's share differs from that of one process."""
    from flash_attention.distributed import context_parallel_attention_with_lse

    whole = make_inputs(case)
    out, lse, gradients = _run(flash_attention.attention_with_lse, whole, case.options())
    rows = ("query", "key", "value", "grad_out", "grad_lse")
    local = {name: cut(case, x) if name in rows else x for name, x in whole.items()}
    mine = _run(
        context_parallel_attention_with_lse,
        local,
        {**case.options(), "method": case.method, "load_balance": case.load_balance},
    )

    for name in ("alibi_slopes", "sinks"):
        if name in gradients:
            # Before the first comparison, so that a process that fails keeps no other waiting.
            total = mine[2][name].double()
            dist.all_reduce(total)
            mine[2][name] = total.to(case.dtype)

    exact = case.dtype is torch.float64
    close = FLOAT64_ABSOLUTE if exact else CLOSE[case.dtype]
    if case.method == "ring":
        torch.testing.assert_close(mine[0], cut(case, out), rtol=close, atol=close)
        close_lse = FLOAT64_ABSOLUTE if exact else CLOSE[torch.float32]
        torch.testing.assert_close(mine[1], cut(case, lse), rtol=close_lse, atol=close_lse)
    else:
        assert torch.equal(mine[0], cut(case, out))
        assert torch.equal(mine[1], cut(case, lse))
    for name, actual in mine[2].items():
        assert actual.dtype is case.dtype
        of_rows = name in ("query", "key", "value")
        expected = cut(case, gradients[name]) if of_rows else gradients[name]
        tolerance = close if exact else GRADIENT_SLACK * close
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
