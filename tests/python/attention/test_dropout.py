"""Dropout: the mask, its statistics, and that it depends only on the seed."""

from __future__ import annotations

import math

import flash_attention
import pytest
import torch

from support.checks import check
from support.measuring import threads
from support.problems import DTYPES, Spec, dtype_name, make_problem
from support.tolerances import CLOSE


def mask_after_seed(seed: int, *arguments: float) -> torch.Tensor:
    torch.manual_seed(seed)
    return flash_attention.dropout_mask(*arguments)


def call_after_seed(seed: int, problem_options: dict[str, object]) -> torch.Tensor:
    torch.manual_seed(seed)
    return flash_attention.attention(**problem_options)


@pytest.mark.parametrize("dropout", [0.0, 0.01, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_probability_matches_the_reference(dtype: torch.dtype, dropout: float) -> None:
    check(make_problem(Spec(queries=70, keys=130, dropout=dropout, bias="LS"), dtype))


def test_mask_has_the_requested_shape() -> None:
    mask = mask_after_seed(0, 2, 3, 5, 7, 0.5)
    assert mask.dtype == torch.bool and mask.shape == (2, 3, 5, 7)
    assert mask_after_seed(0, 2, 3, 5, 7, 0.0).all()
    assert mask_after_seed(0, 0, 3, 5, 7, 0.5).shape == (0, 3, 5, 7)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_fraction_of_kept_weights(dropout: float) -> None:
    """Within 5 standard deviations, over the whole mask and over every row, column and head."""
    mask = mask_after_seed(1, 4, 4, 250, 250, dropout).double()
    for axes in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (2, 3)):
        shares = mask.mean(axes)
        count = mask.numel() / shares.numel()
        deviation = math.sqrt(dropout * (1 - dropout) / count)
        assert (shares - (1 - dropout)).abs().max().item() < 5 * deviation


def test_neighbouring_mask_elements_are_independent() -> None:
    """Autocorrelation of the mask at distance one along each dimension."""
    mask = mask_after_seed(2, 4, 4, 200, 200, 0.5).double() - 0.5
    for axis in range(4):
        size = mask.size(axis) - 1
        product = mask.narrow(axis, 0, size) * mask.narrow(axis, 1, size)
        assert abs(product.mean().item()) < 5 * 0.25 / math.sqrt(product.numel())


def test_mask_follows_the_seed() -> None:
    first = mask_after_seed(3, 1, 2, 40, 40, 0.5)
    assert torch.equal(first, mask_after_seed(3, 1, 2, 40, 40, 0.5))
    assert not torch.equal(first, mask_after_seed(4, 1, 2, 40, 40, 0.5))
    torch.manual_seed(3)
    flash_attention.dropout_mask(1, 2, 40, 40, 0.5)
    assert not torch.equal(first, flash_attention.dropout_mask(1, 2, 40, 40, 0.5))


def test_smaller_mask_is_the_corner_of_a_larger_one() -> None:
    """The mask is a function of (seed, b, h, i, j) and not of the sizes."""
    large = mask_after_seed(5, 1, 1, 90, 110, 0.5)
    assert torch.equal(mask_after_seed(5, 1, 1, 37, 41, 0.5), large[:, :, :37, :41])


def test_higher_probability_drops_a_superset() -> None:
    low, high = mask_after_seed(6, 1, 2, 50, 50, 0.2), mask_after_seed(6, 1, 2, 50, 50, 0.7)
    assert (low | ~high).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_mask_is_independent_of_block_size_simd_and_threads(dtype: torch.dtype) -> None:
    spec = Spec(1, 2, queries=140, keys=150, dropout=0.4)
    problem = make_problem(spec, dtype)
    expected = call_after_seed(7, problem.inputs | problem.options)
    # Other block sizes and the scalar kernels sum in another order.
    for block_size in (1, 3, 5, 30, 64, 500):
        for use_simd in (True, False):
            changed = problem.options | {"block_size": block_size, "use_simd": use_simd}
            out = call_after_seed(7, problem.inputs | changed)
            torch.testing.assert_close(out, expected, rtol=0, atol=10 * CLOSE[dtype])
    with threads(1):
        assert torch.equal(call_after_seed(7, problem.inputs | problem.options), expected)


def test_float32_and_float64_drop_the_same_weights() -> None:
    problem = make_problem(Spec(dropout=0.5), torch.float32)
    single = call_after_seed(8, problem.inputs | problem.options)
    double = {name: t.double() for name, t in problem.inputs.items()}
    difference = call_after_seed(8, double | problem.options) - single.double()
    assert difference.abs().max().item() < 10 * CLOSE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dropout_draws_from_the_generator_once_per_call(dtype: torch.dtype) -> None:
    """One draw per forward with dropout, for any shape; none without dropout or in backward."""

    def number_after(**options: float) -> torch.Tensor:
        problem = make_problem(Spec(), dtype)
        torch.manual_seed(9)
        leaves = problem.leaves()
        flash_attention.attention(**leaves, **options).sum().backward()
        return torch.rand(())

    torch.manual_seed(9)
    untouched = torch.rand(())
    torch.manual_seed(9)
    flash_attention.dropout_mask(1, 1, 1, 1, 0.5)
    after_one_draw = torch.rand(())
    assert torch.equal(number_after(), untouched)
    assert torch.equal(number_after(dropout=0.5), after_one_draw)
    assert not torch.equal(untouched, after_one_draw)


def test_standard_attention_drops_the_same_weights() -> None:
    problem = make_problem(Spec(dropout=0.5, causal=True), torch.float64)
    arguments = problem.inputs | {"dropout": 0.5, "causal": True}
    torch.manual_seed(10)
    standard = flash_attention.standard_attention(**arguments)
    difference = call_after_seed(10, arguments) - standard
    assert difference.abs().max().item() < CLOSE[torch.float64]


def test_mean_over_masks_is_attention_without_dropout() -> None:
    """Kept weights are scaled by 1 / (1 - p), so the mean over many masks is the plain output."""
    problem = make_problem(Spec(1, 1, queries=4, keys=6), torch.float64)
    draws = [
        flash_attention.attention(**problem.inputs, dropout=0.3).squeeze() for _ in range(4000)
    ]
    mean, plain = torch.stack(draws).mean(0), flash_attention.attention(**problem.inputs).squeeze()
    # The factor of one weight has variance p / (1 - p) < 0.5 and values are below 4, so 5 standard
    # deviations are below 5 * 4 * sqrt(0.5 / 4000).
    assert (mean - plain).abs().max().item() < 5 * 4 * math.sqrt(0.5 / 4000)
