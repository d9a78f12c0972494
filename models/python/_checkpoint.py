"""Model files whose class is not known beforehand."""

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
    """The model in a file of `ForecastModel.save`, of neuralforecast's `save`, or of flash_train.

    It is in eval mode. See `ForecastModel.from_checkpoint`, which takes one class only.

    Raises:
        ValueError: the file is broken, holds none of the six, or needs an option that ours lacks.
    """
    model_class, *_ = torch.ops.flash_models.read_model(os.fspath(path))
    return getattr(_classes, model_class).from_checkpoint(
        path,
        use_flash_attention=use_flash_attention,
        flash_block_size=flash_block_size,
        gradient_checkpointing=gradient_checkpointing,
    )
