"""The models' products on matrix tiles, as torch's float32 matmul precision asks.

Emulated tiles take 50 us for 16 x 16 x 32 products, so the model is small.
"""

from __future__ import annotations

import pytest
import torch
from flash_attention import models

from support.instruction_sets import WITH_FLOAT_PARTS
from support.tolerances import TILE_PARTS_ROUNDED

# A model passes rounding on from layer to layer, and its norms magnify it.
FACTOR = 2.0**3


def step(model: models.ForecastModel, past: torch.Tensor, precision: str) -> list[torch.Tensor]:
    """The output and the gradient of every parameter, with a fixed seed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        model.zero_grad()
        torch.manual_seed(3)
        output = model.forward(
            {"insample_y": past, "futr_exog": None, "hist_exog": None, "stat_exog": None}
        )
        output.square().mean().backward()
    finally:
        torch.set_float32_matmul_precision(before)
    return [output.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.float_parts
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_high_uses_two_parts_where_there_are_tiles(isa: str, dropout: float) -> None:
    model = models.iTransformer(
        h=8, input_size=64, n_series=8, hidden_size=64, n_heads=2, e_layers=1, d_ff=64,
        dropout=dropout,
    )  # fmt: skip
    past = torch.randn(8, 64, 8)
    exact, high = (step(model, past, precision) for precision in ("highest", "high"))
    # Gradients of biases of keys are rounding: they leave a softmax unchanged.
    largest = max(expected.abs().max().item() for expected in exact)
    for got, expected in zip(high, exact, strict=True):
        limit = FACTOR * TILE_PARTS_ROUNDED * largest
        torch.testing.assert_close(got, expected, rtol=0, atol=limit)
    changed = any(not torch.equal(got, expected) for got, expected in zip(high, exact, strict=True))
    assert changed == (isa in WITH_FLOAT_PARTS)
