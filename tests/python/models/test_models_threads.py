"""A training step with flash attention has the same bits on any number of threads."""

from __future__ import annotations

import pytest
import torch
from flash_attention import models

from support.measuring import threads

# A batch of several blocks of rows per thread, and layers that are large enough for every way to
# compute a product.
BATCH, LENGTH, HORIZON = 24, 48, 12
# Outputs from which on torch shares the sum to a single number among its threads.
MANY_OUTPUTS = 1 << 15
OPTIONS = {
    "TFT": {"hidden_size": 64, "n_head": 4},
    "Informer": {"hidden_size": 64, "n_head": 4, "conv_hidden_size": 128},
    "Autoformer": {"hidden_size": 64, "n_head": 4, "conv_hidden_size": 128},
    "FEDformer": {"hidden_size": 64, "n_head": 8, "conv_hidden_size": 128},
    "PatchTST": {"hidden_size": 64, "n_heads": 8, "linear_hidden_size": 128},
    "iTransformer": {"hidden_size": 64, "n_heads": 4, "d_ff": 256, "n_series": 11},
}


def step(
    model: models.ForecastModel, windows: dict[str, torch.Tensor | None], count: int
) -> dict[str, torch.Tensor]:
    """The output and the gradient of every parameter, by name, on `count` threads."""
    model.zero_grad()
    torch.manual_seed(3)
    with threads(count):
        output = model.forward(windows)
        output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach()} | {name: g.clone() for name, g in gradients.items()}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_training_step_is_bitwise_equal_for_any_thread_count(name: str, isa: str) -> None:
    if isa == "scalar":
        pytest.skip("the products are those of torch, whose sums depend on the number of threads")
    torch.manual_seed(1)
    # Standard attention is made of operators of torch. Two models have attention of their own.
    flash = name not in ("Autoformer", "FEDformer")
    options = {"h": HORIZON, "input_size": LENGTH, "use_flash_attention": flash} | OPTIONS[name]
    model = getattr(models, name)(**options).train()
    past = torch.randn(BATCH, LENGTH, options.get("n_series", 1))
    windows = {"insample_y": past, "futr_exog": None, "hist_exog": None, "stat_exog": None}
    expected = step(model, windows, 1)
    for count in (2, 3):
        found = step(model, windows, count)
        assert found.keys() == expected.keys()
        different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
        assert not different, f"{', '.join(different)} differ between 1 and {count} threads"


@pytest.mark.parametrize("name", ["Autoformer", "FEDformer", "Informer", "TFT"])
def test_gradient_of_a_bias_of_one_output_is_bitwise_equal(name: str, isa: str) -> None:
    if isa == "scalar":
        pytest.skip("the products are those of torch, whose sums depend on the number of threads")
    torch.manual_seed(1)
    flash = name not in ("Autoformer", "FEDformer")
    options = {"hidden_size": 16, "use_flash_attention": flash}
    options |= {"n_head": 8} if name == "FEDformer" else {"n_head": 2}
    # MKL transforms shorter series than this, for Autoformer, several at once on each thread.
    horizon, length = 64, 72
    model = getattr(models, name)(h=horizon, input_size=length, **options).train()
    past = torch.randn(MANY_OUTPUTS // horizon + 1, length, 1)
    windows = {"insample_y": past, "futr_exog": None, "hist_exog": None, "stat_exog": None}
    expected, found = step(model, windows, 1), step(model, windows, 2)
    different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    assert not different, f"{', '.join(different)} differ between 1 and 2 threads"
