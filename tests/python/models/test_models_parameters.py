"""Parameters of any layout, and forecasts with and without a graph."""

from __future__ import annotations

import pytest
import torch
from flash_attention import models

LENGTH, HORIZON = 24, 4
OPTIONS = {
    "TFT": {"hidden_size": 16, "n_head": 2},
    "Informer": {"hidden_size": 16, "n_head": 2, "conv_hidden_size": 64},
    "Autoformer": {"hidden_size": 16, "n_head": 2, "conv_hidden_size": 64},
    "FEDformer": {"hidden_size": 16, "n_head": 8, "conv_hidden_size": 64},
    "PatchTST": {"hidden_size": 16, "n_heads": 2, "linear_hidden_size": 64, "patch_len": 8}
    | {"stride": 4},
    "iTransformer": {"hidden_size": 16, "n_heads": 2, "d_ff": 64, "n_series": 3},
}


def small(name: str) -> tuple[models.ForecastModel, torch.Tensor]:
    """A model in training mode, whose parameters are not those of a new one, and windows."""
    torch.manual_seed(0)
    flash = name not in ("Autoformer", "FEDformer")
    options = {"h": HORIZON, "input_size": LENGTH, "use_flash_attention": flash} | OPTIONS[name]
    model = getattr(models, name)(**options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, torch.randn(6, LENGTH, options.get("n_series", 1))


def every_second(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at every second element of a larger tensor."""
    larger = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7, dtype=tensor.dtype)
    larger[..., ::2] = tensor.detach()
    return larger[..., ::2].requires_grad_()


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_may_have_any_strides(name: str) -> None:
    model, windows = small(name)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    values = {key: value.detach().requires_grad_() for key, value in model.named_parameters()}

    def step(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
        state = parameters | {key: value.clone() for key, value in buffers.items()}
        torch.manual_seed(1)
        out = torch.func.functional_call(model, state, (windows,))
        leaves = {key: value for key, value in parameters.items() if value.requires_grad}
        gradients = torch.autograd.grad(out.square().sum(), leaves.values(), allow_unused=True)
        return {"": out.detach(), **dict(zip(leaves, gradients, strict=True))}

    fixed = {key: value.requires_grad for key, value in model.named_parameters()}
    contiguous = {key: value.requires_grad_(fixed[key]) for key, value in values.items()}
    strided = {
        key: every_second(value).requires_grad_(fixed[key]) if value.dim() > 0 else value
        for key, value in values.items()
    }
    expected, found = step(contiguous), step(strided)
    for key, value in expected.items():
        if value is None:
            assert found[key] is None, key
        else:
            # Sums in another order where a layer reads its weight in place.
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "PatchTST"])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_forecasts_have_the_same_bits_with_and_without_a_graph(name: str, batch: int) -> None:
    model, windows = small(name)
    model.eval()
    windows = windows.repeat(7, 1, 1)[:batch]
    torch.manual_seed(2)
    expected = model(windows)
    for without in (torch.no_grad, torch.inference_mode):
        torch.manual_seed(2)
        with without():
            assert torch.equal(model(windows), expected)


def test_gradients_in_batches() -> None:
    model, windows = small("iTransformer")
    model.eval()

    def head(weight: torch.Tensor) -> torch.Tensor:
        state = {"projector.weight": weight}
        return torch.func.functional_call(model, state, (windows[:1],))

    weight = model.get_parameter("projector.weight").detach()
    one_by_one = torch.autograd.functional.jacobian(head, weight)
    at_once = torch.autograd.functional.jacobian(head, weight, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one)
