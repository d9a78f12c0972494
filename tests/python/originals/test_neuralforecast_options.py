"""Outputs and gradients of neuralforecast's models and of ours match for random options."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from flash_attention import models
from neuralforecast.losses.pytorch import MAE, DistributionLoss, MQLoss

from bench.models import training_pair
from support.tolerances import MODEL_FLOAT64, MODEL_RANDOM_OPTIONS_FLOAT32

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

CASES_PER_MODEL = 30
"""They take a few seconds per model."""

Options = dict[str, Any]


def _columns(rng: random.Random, kind: str) -> list[str] | None:
    return [f"{kind}_{i}" for i in range(rng.choice([0, 0, 1, 2, 3]))] or None


def _tft(rng: random.Random) -> Options:
    heads = rng.choice([1, 2, 4])
    return dict(
        hidden_size=heads * rng.choice([1, 2, 3, 8]),
        n_head=heads,
        rnn_type=rng.choice(["lstm", "gru"]),
        n_rnn_layers=rng.choice([1, 2, 3]),
        one_rnn_initial_state=rng.random() < 0.3,
        grn_activation=rng.choice(
            ["ELU", "GELU", "ReLU", "Tanh", "Softplus", "Sigmoid", "LeakyReLU", "SELU", "unknown"]
        ),
        futr_exog_list=_columns(rng, "known"),
        hist_exog_list=_columns(rng, "seen"),
        stat_exog_list=_columns(rng, "kind"),
    )


def _layers(rng: random.Random) -> Options:
    """Options of the models that have an encoder and a decoder."""
    return dict(
        encoder_layers=rng.choice([1, 2, 3]),
        decoder_layers=rng.choice([1, 2]),
        conv_hidden_size=rng.choice([3, 8, 32]),
        activation=rng.choice(["relu", "gelu"]),
        decoder_input_size_multiplier=rng.choice([0.25, 0.5, 0.9]),
        futr_exog_list=_columns(rng, "known"),
    )


def _informer(rng: random.Random) -> Options:
    heads = rng.choice([2, 3, 4])  # with one head the original mixes windows
    return _layers(rng) | dict(
        hidden_size=2 * heads * rng.choice([1, 2, 4]),
        n_head=heads,
        factor=rng.choice([2, 3, 5]),  # with 1 the original may mistake heads for queries
        distil=rng.random() < 0.6,
    )


def _decomposed(rng: random.Random, heads: int) -> Options:
    return _layers(rng) | dict(
        hidden_size=heads * rng.choice([2, 3, 4]),
        n_head=heads,
        MovingAvg_window=rng.choice([3, 5, 25]),
    )


def _autoformer(rng: random.Random) -> Options:
    return _decomposed(rng, rng.choice([1, 2, 4])) | dict(factor=rng.choice([1, 2, 3]))


def _fedformer(rng: random.Random) -> Options:
    return _decomposed(rng, 8) | dict(
        modes=rng.choice([1, 2, 4, 64]), mode_select=rng.choice(["random", "low"])
    )


def _patchtst(rng: random.Random) -> Options:
    heads = rng.choice([1, 2, 4])
    return dict(
        hidden_size=heads * rng.choice([1, 2, 3, 9]),
        n_heads=heads,
        linear_hidden_size=rng.choice([3, 8, 32]),
        encoder_layers=rng.choice([1, 2, 3]),
        fc_dropout=0.0,
        head_dropout=0.0,
        attn_dropout=0.0,
        patch_len=rng.choice([1, 2, 4, 16]),
        stride=rng.choice([1, 2, 3, 8]),
        revin=rng.random() < 0.7,
        revin_affine=rng.random() < 0.5,
        revin_subtract_last=rng.random() < 0.5,
        activation=rng.choice(["relu", "gelu"]),
        res_attention=rng.random() < 0.6,
        batch_normalization=rng.random() < 0.5,
        learn_pos_embed=rng.random() < 0.5,
    )


def _itransformer(rng: random.Random) -> Options:
    heads = rng.choice([1, 2, 4])
    return dict(
        n_series=rng.choice([1, 2, 5, 9]),
        hidden_size=heads * rng.choice([1, 2, 3, 8]),
        n_heads=heads,
        e_layers=rng.choice([1, 2, 3]),
        d_ff=rng.choice([3, 8, 32]),
        use_norm=rng.random() < 0.6,
    )


OPTIONS: dict[str, Callable[[random.Random], Options]] = {
    "TFT": _tft,
    "Informer": _informer,
    "Autoformer": _autoformer,
    "FEDformer": _fedformer,
    "PatchTST": _patchtst,
    "iTransformer": _itransformer,
}


def _loss(rng: random.Random) -> Any:
    return rng.choice(
        [MAE(), MQLoss(level=[80, 90]), DistributionLoss("Normal"), DistributionLoss("StudentT")]
    )


def _windows(options: Options, batch: int, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    past, series = options["input_size"], options.get("n_series", 1)
    windows: dict[str, torch.Tensor | None] = {
        "insample_y": torch.randn(batch, past, series, dtype=dtype),
        "insample_mask": torch.ones(batch, past, series, dtype=dtype),
    }
    for key, lead in (
        ("futr_exog", (batch, past + options["h"])),
        ("hist_exog", (batch, past)),
        ("stat_exog", (batch,)),
    ):
        columns = options.get(f"{key}_list")
        windows[key] = torch.randn(*lead, len(columns), dtype=dtype) if columns else None
    return windows


def _as(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    return model.to(dtype) if dtype != torch.float32 else model


def _run(
    model: torch.nn.Module, windows: dict[str, Any], seed: int, factors: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    out = model(dict(windows))
    factors = torch.randn_like(out) if factors is None else factors
    (out * factors).sum().backward()
    gradients = {
        key: torch.zeros_like(p) if p.grad is None else p.grad
        for key, p in model.named_parameters()
    }
    return out.detach(), factors, gradients


def _largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, relative to the largest expected magnitude but at least 1."""
    if not expected.numel():
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


@dataclass(frozen=True)
class Case:
    """Options, the original model with them, its input, and its results."""

    options: Options
    loss: Any
    original: torch.nn.Module
    windows: dict[str, torch.Tensor | None]
    results: tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


class Refused(Exception):
    """neuralforecast cannot construct or run a model with these options."""


def _random_case(rng: random.Random, name: str, seed: int, dtype: torch.dtype) -> Case:
    options = OPTIONS[name](rng) | dict(
        h=rng.choice([1, 2, 3, 5, 8, 13]),
        input_size=rng.choice([3, 4, 7, 8, 12, 17, 24, 31]),
        dropout=0.0,
    )
    loss, batch = _loss(rng), rng.choice([2, 3])
    try:
        original = _as(
            training_pair.create(name, random_seed=seed + 1, loss=loss, **options), dtype
        )
    except Exception as error:  # its type varies
        raise Refused from error
    original.train(rng.random() < 0.5)
    torch.manual_seed(seed)
    windows = _windows(options, batch, dtype)
    # Autoformer and FEDformer create some tensors of the default dtype.
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Case(options, loss, original, windows, _run(original, windows, seed, None))
    except (IndexError, RuntimeError) as error:  # lengths that are too short fail in forward
        raise Refused from error
    finally:
        torch.set_default_dtype(previous)


def _random_valid_case(name: str, seed: int, dtype: torch.dtype) -> Case:
    """neuralforecast refuses one case in nine; five in a row mean that the generator is wrong."""
    rng = random.Random(f"{name} {seed}")
    for _ in range(4):
        try:
            return _random_case(rng, name, seed, dtype)
        except Refused:
            continue
    return _random_case(rng, name, seed, dtype)


@pytest.mark.parametrize("seed", range(CASES_PER_MODEL))
@pytest.mark.parametrize("name", OPTIONS)
def test_random_options_match_the_original(name: str, seed: int) -> None:
    # neuralforecast's FEDformer always uses complex64.
    dtype = torch.float32 if name == "FEDformer" else torch.float64
    tolerance = MODEL_RANDOM_OPTIONS_FLOAT32 if dtype == torch.float32 else MODEL_FLOAT64
    case = _random_valid_case(name, seed, dtype)
    options, loss, original = case.options, case.loss, case.original
    expected, factors, expected_gradients = case.results
    if name == "FEDformer":
        options["fourier_index"] = training_pair.fourier_index(original)
    for flash in (False, True):
        if flash and name in ("Autoformer", "FEDformer"):
            continue  # there, flash attention changes the model
        ours = getattr(models, name)(
            **options, output_size=loss.outputsize_multiplier, use_flash_attention=flash
        )
        ours = _as(ours, dtype)
        ours.load_state_dict(original.state_dict())
        ours.train(original.training)
        found, _, gradients = _run(ours, case.windows, seed, factors)
        assert _largest_error(found, expected) < tolerance, (options, flash)
        assert gradients.keys() <= expected_gradients.keys()  # the original's include its loss
        for key, gradient in gradients.items():
            assert _largest_error(gradient, expected_gradients[key]) < tolerance, (key, options)
