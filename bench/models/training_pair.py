"""A model of neuralforecast, ours with its weights, and one training step of either.

Only .venv-neuralforecast has neuralforecast, so the functions that need it import it.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from typing import Any

import flash_attention
import torch
from torch import Tensor

from bench.common import host
from bench.models.shapes import Shape

VERSION = "3.3.0"
# The outputs may differ by this much, relative to the largest one, from another order of summation
# in float32. Different weights or formulas differ by more, in every window.
LARGEST_DIFFERENCE = 1e-2
# Share of the windows. In the others, Informer or Autoformer may pick another query or delay, when
# rounding decides which of two is the largest.
JUDGED_WINDOWS = 0.9

Windows = dict[str, Tensor | None]


def neuralforecast() -> Any:
    """The package, with its warnings silenced."""
    warnings.filterwarnings("ignore")
    try:
        import neuralforecast as package
        import neuralforecast.models  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"bench: expected neuralforecast {VERSION} in the environment of {sys.executable}, got "
            f"{error!r}; `make bench` installs it for .venv-neuralforecast/bin/python"
        )
    # Lightning sets the level of its loggers on import.
    for name in ("lightning_fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if package.__version__ != VERSION:
        sys.exit(
            f"bench: expected neuralforecast {VERSION}, found {package.__version__}; "
            "install bench/requirements.txt"
        )
    return package


def describe_run() -> dict[str, Any]:
    """Machine, commit and versions of a comparison with neuralforecast, for the record."""
    where = host.machine()
    text = host.describe(where, flash_attention.build_info().active)
    return {
        "where": f"{text}; neuralforecast {VERSION}; denormals flushed to zero",
        "machine": where,
        "neuralforecast": VERSION,
    }


def create(name: str, **options: Any) -> torch.nn.Module:
    """neuralforecast's model of this name, with its initial weights."""
    return getattr(neuralforecast().models, name)(
        **options,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )


def original(shape: Shape) -> torch.nn.Module:
    """neuralforecast's model of this shape."""
    return create(shape.model, **shape.options)


def fourier_index(model: torch.nn.Module) -> dict[str, list[int]]:
    """The frequencies that this FEDformer selected at random; its state_dict lacks them."""
    encoder = model.encoder.attn_layers[0].attention.inner_correlation
    layer = model.decoder.layers[0]
    crossed = layer.cross_attention.inner_correlation
    found = {
        "enc_self": encoder.index,
        "dec_self": layer.self_attention.inner_correlation.index,
        "dec_cross_q": crossed.index_q,
        "dec_cross_kv": crossed.index_kv,
    }
    return {name: [int(i) for i in index] for name, index in found.items()}


def ours(shape: Shape, source: torch.nn.Module | None = None) -> Any:
    """Our model of this shape, with the weights of `source` if given."""
    from flash_attention import models

    options: dict[str, Any] = dict(shape.options)
    if shape.model == "FEDformer" and source is not None:
        options["fourier_index"] = fourier_index(source)
    model = getattr(models, shape.model)(**options, use_flash_attention=shape.flash)
    if source is not None:
        model.load_state_dict(source.state_dict())
    return model


def windows(shape: Shape, batch: int | None = None) -> tuple[Windows, Tensor]:
    """A batch of random walks without exogenous columns, and the futures to forecast."""
    generator = torch.Generator().manual_seed(0)
    rows = shape.length + shape.horizon
    steps = torch.randn(batch or shape.batch, rows, shape.series, generator=generator)
    walk = 0.1 * steps.cumsum(1)
    past, future = walk.split([shape.length, shape.horizon], 1)
    past = past.contiguous()
    inputs: Windows = {"insample_y": past, "insample_mask": torch.ones_like(past)}
    inputs |= {"futr_exog": None, "hist_exog": None, "stat_exog": None}
    return inputs, future.contiguous()


def largest_difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest output, in the JUDGED_WINDOWS that are closest."""
    per_window = (got - expected).abs().flatten(1).amax(1).sort().values
    judged = per_window[: math.ceil(JUDGED_WINDOWS * len(per_window))]
    return (judged[-1] / expected.abs().max()).item()


def difference(shape: Shape, theirs: torch.nn.Module, own: Any) -> float:
    """`largest_difference` of the outputs without dropout."""
    outputs = []
    for model in (theirs, own):
        model.eval()
        torch.manual_seed(0)  # Informer samples keys at random
        with torch.no_grad():
            outputs.append(model.forward(windows(shape)[0]))
        model.train()
    expected, got = outputs
    return largest_difference(got, expected)


def checked_pair(shape: Shape) -> tuple[dict[str, Any], float]:
    """Both models by side, ours first, with the same weights, and the difference of the outputs."""
    theirs = original(shape)
    own = ours(shape, theirs)
    found = difference(shape, theirs, own)
    if not found < LARGEST_DIFFERENCE:
        sys.exit(
            f"bench/models/compare.py: {shape.label}: expected outputs within "
            f"{LARGEST_DIFFERENCE:g} of neuralforecast's from the same weights, got a difference "
            f"of {found:.2g}; a comparison of speed would be meaningless"
        )
    return {"ours": own, "neuralforecast": theirs}, found


def adam(model: Any, fused: bool, learning_rate: float = 1e-4) -> torch.optim.Adam:
    """Adam in one pass over memory if `fused`, or in one operator after another.

    The fused one takes no complex parameters, which FEDformer has: they are a group of their own.
    """
    groups = [
        {"params": found, "fused": fused and not is_complex}
        for is_complex in (False, True)
        if (found := [p for p in model.parameters() if p.is_complex() == is_complex])
    ]
    return torch.optim.Adam(groups, lr=learning_rate)


class Step:
    """Forward, mean absolute error, backward and Adam; the same code for both sides."""

    def __init__(self, model: Any, inputs: Windows, future: Tensor, fused: bool = False) -> None:
        self.model = model
        self.inputs = inputs
        self.future = future
        self.optimizer = adam(model, fused)
        model.train()

    def gradients(self) -> None:
        """The step without its optimiser."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = (self.model.forward(self.inputs) - self.future).abs().mean()
        loss.backward()

    def __call__(self) -> None:
        self.gradients()
        self.optimizer.step()
