"""The bits of a row of the output depend on its own query, and on no other query's value.

Processes that share a sequence compute their rows beside others than one process would.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flash_attention import attention_with_lse

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "softcap": {"softcap": 20.0},
    "dropout": {"dropout": 0.2},
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_a_row_do_not_depend_on_other_queries(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)

    def normal(scale: float) -> torch.Tensor:
        return (scale * torch.randn(1, 2, 300, 32, generator=generator)).to(dtype)

    # Of scores that grow by much from one block of keys to the next, in some rows.
    query, key, value = normal(3.0), normal(1.0), normal(1.0)
    sinks = torch.tensor([-20.0, 20.0]).to(dtype)
    changed = query.clone()
    changed[:, :, ::2] = 0.0
    found = []
    for each in (query, changed):
        torch.manual_seed(1)
        results = attention_with_lse(each, key, value, sinks=sinks, **OPTIONS[name])
        found.append([x[:, :, 1::2] for x in results])
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)
