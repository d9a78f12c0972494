"""Six forecasting transformers of neuralforecast, implemented in C++, as `torch.nn.Module`s.

>>> import torch
>>> from flash_attention.models import PatchTST
>>> model = PatchTST(h=24, input_size=96, hidden_size=32, n_heads=4, use_flash_attention=True)
>>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
>>> windows, future = torch.randn(8, 96, 1), torch.randn(8, 24, 1)
>>> loss = (model({"insample_y": windows}) - future).abs().mean()
>>> loss.backward()
>>> optimizer.step()

`Forecaster` forecasts raw series by a model from a file, and `accelerate` makes a model object of
neuralforecast use the same C++ code.
"""

from flash_attention import _library

_library.load("libflash_models.so")  # registers what the imports below use

from flash_attention.models._checkpoint import load  # noqa: E402
from flash_attention.models._classes import (  # noqa: E402
    TFT,
    Autoformer,
    FEDformer,
    Informer,
    PatchTST,
    iTransformer,
)
from flash_attention.models._forecaster import Forecaster  # noqa: E402
from flash_attention.models._module import ForecastModel  # noqa: E402
from flash_attention.models._neuralforecast import accelerate, restore  # noqa: E402

__all__ = [
    "TFT",
    "Autoformer",
    "FEDformer",
    "ForecastModel",
    "Forecaster",
    "Informer",
    "PatchTST",
    "accelerate",
    "iTransformer",
    "load",
    "restore",
]
