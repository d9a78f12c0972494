"""Loading model files of any class."""

from __future__ import annotations

import os

import torch
from flash_attention.models import _classes
from flash_attention.models._module import ForecastModel


def load(
    path: str | os.PathLike[str],
    *,
    use_flash_attention: bool = False,
    flash_block_size: int = 64,
    gradient_checkpointing: bool = False,
) -> ForecastModel:
    """Load a model from a file of `ForecastModel.save`, neuralforecast's `save`, or flash_train.

    The model is in eval mode. `ForecastModel.from_checkpoint` loads a file of a known class.

    Raises:
        ValueError: the file is broken, holds none of the six models, or needs an option that the
            C++ model lacks.
    """
    model_class, *_ = torch.ops.flash_models.read_model(os.fspath(path))
    return getattr(_classes, model_class).from_checkpoint(
        path,
        use_flash_attention=use_flash_attention,
        flash_block_size=flash_block_size,
        gradient_checkpointing=gradient_checkpointing,
    )
