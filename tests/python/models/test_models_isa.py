"""The models' layers run on the kernels of the active instruction set."""

from __future__ import annotations

import flash_attention
import pytest
import torch
from flash_attention import models

from support.tolerances import MODEL_COMPLEX_TANH, MODEL_FLOAT64

SUPPORTED = [isa.name for isa in flash_attention.build_info().isa if isa.supported]

# Sizes that exercise every loop: widths that are not multiples of a vector, odd and even lengths.
OPTIONS = {
    "TFT": {"hidden_size": 20, "n_head": 2, "dropout": 0.0},
    "Autoformer": {"hidden_size": 24, "n_head": 2, "dropout": 0.0},
    "FEDformer": {"hidden_size": 24, "n_head": 8, "dropout": 0.0},
    "Informer": {"hidden_size": 24, "n_head": 2, "dropout": 0.0},
    "PatchTST": {"hidden_size": 24, "n_heads": 3, "dropout": 0.0, "use_flash_attention": True},
}


def step(model: models.ForecastModel, past: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradient of every parameter, with a fixed seed."""
    model.zero_grad()
    torch.manual_seed(3)
    output = model.forward(
        {"insample_y": past, "futr_exog": None, "hist_exog": None, "stat_exog": None}
    )
    output.square().sum().backward()
    return [output.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("length", [36, 37])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_training_step_matches_across_instruction_sets(name: str, length: int) -> None:
    torch.manual_seed(1)
    model = getattr(models, name)(h=12, input_size=length, **OPTIONS[name]).to(torch.float64)
    past = torch.randn(3, length, 1, dtype=torch.float64)
    found: dict[str, list[torch.Tensor]] = {}
    before = torch.ops.flash._use_isa(SUPPORTED[0])
    try:
        for isa in SUPPORTED:
            torch.ops.flash._use_isa(isa)
            found[isa] = step(model, past)
    finally:
        torch.ops.flash._use_isa(before)
    scalar = found["scalar"]
    limit = MODEL_COMPLEX_TANH if name == "FEDformer" else MODEL_FLOAT64
    for isa in SUPPORTED:
        for own, expected in zip(found[isa], scalar, strict=True):
            torch.testing.assert_close(own, expected, rtol=limit, atol=limit, msg=isa)
        # FMA rounds differently: bitwise equal results would mean the same kernels ran.
        if isa != "scalar":
            assert any(not torch.equal(a, b) for a, b in zip(found[isa], scalar, strict=True)), isa
