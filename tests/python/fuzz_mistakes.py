"""Mistakes in the arguments of a call, each of which must be refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flash_attention
import torch
from problems import Problem
from torch import Tensor


def another_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else torch.float64


@dataclass(frozen=True)
class Mistake:
    """Breaks the arguments of a valid 4-D call, which must then raise `error` and name `word`."""

    error: type[Exception]
    word: str
    make: Callable[[dict[str, Any]], dict[str, Any]]


def _longer(x: Tensor, dim: int) -> Tensor:
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


MISTAKES = {
    "value shorter": Mistake(
        ValueError, "value", lambda a: {"value": a["value"].narrow(-2, 0, a["value"].size(-2) - 1)}
    ),
    "key longer": Mistake(ValueError, "key", lambda a: {"key": _longer(a["key"], -2)}),
    "key wider": Mistake(ValueError, "key", lambda a: {"key": _longer(a["key"], -1)}),
    "batches": Mistake(ValueError, "batch", lambda a: {"key": _longer(a["key"], 0)}),
    "dtypes": Mistake(
        TypeError, "dtype", lambda a: {"value": a["value"].to(another_dtype(a["value"].dtype))}
    ),
    "integers": Mistake(
        TypeError, "Long", lambda a: {n: a[n].long() for n in ("query", "key", "value")}
    ),
    "dropout": Mistake(ValueError, "dropout", lambda _: {"dropout": 1.5}),
    "dropout NaN": Mistake(ValueError, "dropout", lambda _: {"dropout": math.nan}),
    "block_size": Mistake(ValueError, "block_size", lambda _: {"block_size": 0}),
    "window": Mistake(ValueError, "window", lambda _: {"window": (-2, 0)}),
    "softcap": Mistake(ValueError, "softcap", lambda _: {"softcap": -1.0}),
    "bias": Mistake(
        ValueError, "bias", lambda a: {"bias": a["query"].new_zeros(a["key"].size(-2) + 2)}
    ),
    "bias dtype": Mistake(TypeError, "bias", lambda _: {"bias": torch.zeros((), dtype=torch.long)}),
    "slopes": Mistake(
        ValueError,
        "alibi_slopes",
        lambda a: {"alibi_slopes": a["query"].new_zeros(a["query"].size(1) + 1)},
    ),
    "sinks": Mistake(ValueError, "sinks", lambda a: {"sinks": a["query"].new_zeros(())}),
    "positions": Mistake(
        TypeError, "query_positions", lambda a: {"query_positions": a["query"].new_zeros(1)}
    ),
}


def check_mistake(problem: Problem, mistake: Mistake) -> None:
    arguments = problem.inputs | problem.options
    arguments |= mistake.make(arguments)
    try:
        flash_attention.attention(**arguments)
    except mistake.error as error:
        text = str(error)
        assert text.startswith("flash::attention: expected") and mistake.word in text, text
        return
    raise AssertionError(f"expected {mistake.error.__name__} naming {mistake.word}, got a result")
