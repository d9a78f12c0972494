"""Run by test_torch_sdpa_bugs.py: peak resident memory of calls that must not need O(L S).

It runs in a process of its own, because the peak of a process never goes down: each scenario prints
by how many bytes it raised the peak. One warm-up call pays for what every call needs.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable

import torch
from flash_attention import attention
from torch import Tensor

HEADS, LENGTH, DIM = 2, 4096, 8


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def scenarios() -> dict[str, Callable[[], Tensor]]:
    """Calls by name; all their tensors are allocated before the first measurement."""
    query, key, value = (random(1, HEADS, LENGTH, DIM) for _ in range(3))
    flat = [random(HEADS, LENGTH, DIM) for _ in range(3)]
    half_width = random(1, HEADS, LENGTH, DIM // 2)
    columns = [random(1, HEADS, DIM, LENGTH) for _ in range(3)]
    one_head = [random(1, 1, LENGTH, DIM) for _ in range(2)]
    key_bias, row_bias = random(LENGTH), random(1, HEADS, LENGTH, 1)
    slopes, sinks = random(HEADS), random(HEADS)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril_()
    return {
        "plain": lambda: attention(query, key, value),
        "dropout": lambda: attention(query, key, value, dropout=0.1),
        "bias-per-key": lambda: attention(query, key, value, bias=key_bias),
        "bias-per-row": lambda: attention(query, key, value, bias=row_bias),
        "three-dimensional": lambda: attention(*flat),
        "value-of-another-width": lambda: attention(query, key, half_width),
        "last-dimension-strided": lambda: attention(*(x.mT for x in columns)),
        "one-kv-head": lambda: attention(query, *one_head),
        "expanded-bool-mask": lambda: attention(query, key, value, bias=mask.expand(1, 2, -1, -1)),
        "causal": lambda: attention(query, key, value, causal=True),
        "window": lambda: attention(query, key, value, window=(100, 0)),
        "alibi": lambda: attention(query, key, value, alibi_slopes=slopes),
        "softcap": lambda: attention(query, key, value, softcap=20.0),
        "sinks": lambda: attention(query, key, value, sinks=sinks),
    }


def main() -> None:
    calls = scenarios()
    calls["plain"]().sum().backward()
    increases = {}
    for name, call in calls.items():
        before = peak_bytes()
        call().sum().backward()
        increases[name] = peak_bytes() - before
    print(json.dumps({"increases": increases, "matrix": HEADS * LENGTH * LENGTH * 4}))


if __name__ == "__main__":
    main()
