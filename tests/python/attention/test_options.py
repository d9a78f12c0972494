"""Every single option and every pair, forward and backward, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import flash_attention
import pytest
import torch

from support.checks import assert_close_to_reference, check, run, run_output_only
from support.problems import DTYPES, Problem, Spec, dtype_name, make_problem, single_variants
from support.tolerances import CLOSE

SINGLES = single_variants()


def standard(**arguments: object) -> torch.Tensor:
    """standard_attention with the arguments of attention; it has no block_size and no use_simd."""
    arguments = {k: v for k, v in arguments.items() if k not in ("block_size", "use_simd")}
    return flash_attention.standard_attention(**arguments)


@pytest.mark.parametrize("spec", SINGLES.values(), ids=SINGLES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_single_option(dtype: torch.dtype, spec: Spec) -> None:
    problem = make_problem(spec, dtype)
    check(problem)
    assert_close_to_reference(
        run_output_only(problem, flash_attention.attention), without_lse(problem), skip_lse=True
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_two_options(dtype: torch.dtype, pairwise_spec: Spec) -> None:
    check(make_problem(pairwise_spec, dtype))


@pytest.mark.parametrize("spec", SINGLES.values(), ids=SINGLES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_standard_attention_matches_the_reference(dtype: torch.dtype, spec: Spec) -> None:
    problem = make_problem(spec, dtype)
    assert_close_to_reference(
        run_output_only(problem, standard), without_lse(problem), skip_lse=True
    )


def without_lse(problem: Problem) -> Problem:
    """The same problem with a zero gradient for lse."""
    problem.grad_lse = torch.zeros_like(problem.grad_lse)
    return problem


@pytest.mark.parametrize("block_size", [1, 7, 32, 100, 1000, 10**9])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_block_size_does_not_change_the_dropout_mask(dtype: torch.dtype, block_size: int) -> None:
    spec = Spec(queries=70, keys=150, dropout=0.4, causal=True)
    default = run(make_problem(spec, dtype))
    other = run(make_problem(Spec(**{**vars(spec), "block_size": block_size}), dtype))
    # Other block sizes sum in another order; a differing mask would change results by order 1.
    for name, tensor in default.tensors().items():
        torch.testing.assert_close(
            other.tensors()[name], tensor, rtol=0.0, atol=10 * CLOSE[dtype], msg=name
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_all_options_on_a_longer_problem(dtype: torch.dtype) -> None:
    """Several query and key blocks, so that errors after the first block show."""
    spec = Spec(
        batch=2,
        heads=4,
        key_heads=2,
        value_heads=1,
        queries=211,
        keys=307,
        head_dim=24,
        value_dim=40,
        layout="transposed",
        bias="1HLS",
        causal=True,
        positions="BHL",
        scale=0.3,
        dropout=0.2,
        block_size=48,
    )
    check(make_problem(spec, dtype))
    scored = replace(spec, causal=False, window=(90, 30), alibi="BH", softcap=3.0, sinks="H")
    check(make_problem(scored, dtype))


@pytest.mark.parametrize(
    "bias", ["", "S", "L1", "LS", "1LS", "H1S", "HLS", "B111", "1H1S", "B1L1", "BHL1", "BHLS"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bias_gradient_has_the_shape_of_the_bias(dtype: torch.dtype, bias: str) -> None:
    problem = make_problem(Spec(queries=130, keys=141, bias=bias, causal=True), dtype)
    check(problem)
    assert run(problem).grads["dbias"].shape == problem.inputs["bias"].shape


@pytest.mark.parametrize("transposed", [(0, 1), (1, 2), (2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("kind", ["bias", "mask"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_bias_of_any_strides(dtype: torch.dtype, kind: str, transposed: tuple[int, int]) -> None:
    problem = make_problem(Spec(**{kind: "BHLS"}), dtype)
    bias = problem.inputs["bias"]
    problem.inputs["bias"] = bias.transpose(*transposed).contiguous().transpose(*transposed)
    check(problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_expanded_bias_gradient(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(bias="1H1S"), dtype)
    problem.inputs["bias"] = problem.inputs["bias"].expand(2, 4, 19, 33)
    check(problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_positions_may_be_strided_and_outside_the_keys(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(causal=True), dtype)
    positions = torch.tensor([-(2**62), -1, 0, 5, 32, 33, 2**62] + [7] * 12)
    problem.options["query_positions"] = positions.repeat_interleave(2)[::2]
    check(problem)


def test_top_left_causal_by_positions() -> None:
    problem = make_problem(Spec(causal=True), torch.float64)
    problem.options["query_positions"] = torch.arange(19)
    top_left = torch.ones(19, 33, dtype=torch.bool).tril()
    expected = flash_attention.attention(
        *(problem.inputs[n] for n in ("query", "key", "value")), bias=top_left
    )
    actual = run(problem).out
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=CLOSE[torch.float64])


def test_incremental_decoding_matches_causal_attention() -> None:
    """Causal attention over all positions equals one query at a time over growing keys."""
    problem = make_problem(Spec(queries=20, keys=20, causal=True), torch.float64)
    query, key, value = (problem.inputs[n] for n in ("query", "key", "value"))
    together = flash_attention.attention(query, key, value, causal=True)
    for t in range(20):
        step = flash_attention.attention(
            query[:, :, t : t + 1], key[:, :, : t + 1], value[:, :, : t + 1], causal=True
        )
        torch.testing.assert_close(
            step, together[:, :, t : t + 1], rtol=0.0, atol=CLOSE[torch.float64]
        )
