"""Invalid arguments, each of which must be refused with a message that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flash_attention
import torch
from torch import Tensor

from support.problems import Problem


def another_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else torch.float64


@dataclass(frozen=True)
class InvalidCall:
    """A change to a valid 4-D call, which must then raise `error` with `word` in the message."""

    error: type[Exception]
    word: str
    make: Callable[[dict[str, Any]], dict[str, Any]]


def _longer(x: Tensor, dim: int) -> Tensor:
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


INVALID_CALLS = {
    "value shorter": InvalidCall(
        ValueError, "value", lambda a: {"value": a["value"].narrow(-2, 0, a["value"].size(-2) - 1)}
    ),
    "key longer": InvalidCall(ValueError, "key", lambda a: {"key": _longer(a["key"], -2)}),
    "key wider": InvalidCall(ValueError, "key", lambda a: {"key": _longer(a["key"], -1)}),
    "batches": InvalidCall(ValueError, "batch", lambda a: {"key": _longer(a["key"], 0)}),
    "dtypes": InvalidCall(
        TypeError, "dtype", lambda a: {"value": a["value"].to(another_dtype(a["value"].dtype))}
    ),
    "integers": InvalidCall(
        TypeError, "Long", lambda a: {n: a[n].long() for n in ("query", "key", "value")}
    ),
    "dropout": InvalidCall(ValueError, "dropout", lambda _: {"dropout": 1.5}),
    "dropout NaN": InvalidCall(ValueError, "dropout", lambda _: {"dropout": math.nan}),
    "block_size": InvalidCall(ValueError, "block_size", lambda _: {"block_size": 0}),
    "window": InvalidCall(ValueError, "window", lambda _: {"window": (-2, 0)}),
    "softcap": InvalidCall(ValueError, "softcap", lambda _: {"softcap": -1.0}),
    "bias": InvalidCall(
        ValueError, "bias", lambda a: {"bias": a["query"].new_zeros(a["key"].size(-2) + 2)}
    ),
    "bias dtype": InvalidCall(
        TypeError, "bias", lambda _: {"bias": torch.zeros((), dtype=torch.long)}
    ),
    "slopes": InvalidCall(
        ValueError,
        "alibi_slopes",
        lambda a: {"alibi_slopes": a["query"].new_zeros(a["query"].size(1) + 1)},
    ),
    "sinks": InvalidCall(ValueError, "sinks", lambda a: {"sinks": a["query"].new_zeros(())}),
    "positions": InvalidCall(
        TypeError, "query_positions", lambda a: {"query_positions": a["query"].new_zeros(1)}
    ),
}


def check_invalid_call(problem: Problem, invalid_call: InvalidCall) -> None:
    arguments = problem.inputs | problem.options
    arguments |= invalid_call.make(arguments)
    try:
        flash_attention.attention(**arguments)
    except invalid_call.error as error:
        text = str(error)
        assert text.startswith("flash::attention: expected") and invalid_call.word in text, text
        return
    raise AssertionError(
        f"expected {invalid_call.error.__name__} naming {invalid_call.word}, got a result"
    )
