"""The tolerances of the Python tests, each with its reason."""

from __future__ import annotations

import torch

# float64, standard normal inputs: a few hundred roundings of 1.1e-16 on values of order 1 to 10
# stay below 1e-13. Ten times that allows for the longest sums (2049 terms). Any real error (a
# missing key, a weight not rescaled) is above 1e-6.
FLOAT64_ABSOLUTE = 1e-12

# float32: at most twice the error of torch's math path on the same inputs. Twice, because two
# correct summation orders differ by about that. It applies to the root mean square and to the
# largest error of each tensor.
FLOAT32_TIMES_MATH_PATH = 2.0

# The math path is sometimes exact by structure (with one key the softmax gradient cancels to
# exactly 0), so a float32 error of a few units of reference.rounding_model is always allowed. The
# model assumes one independent rounding per product; a polynomial exponential within 2 ulp is 4
# such units.
FLOAT32_ROUNDING_UNITS_RMS = 2.0

# The largest error depends on the seed: for the same kernel it is 0.5 to 4 times that of the math
# path where their root mean squares are equal. So it may also be this many units.
FLOAT32_ROUNDING_UNITS_LARGEST = 8.0

# With fewer elements or query rows than this, the root mean square depends on the seed too, and
# only the largest error is compared: for example for the gradient of a scalar bias, or for 8 heads
# of one query, which have one error per row. Rows with equal scores (with scale 0, say) have equal
# errors and count as one.
MIN_COUNT_FOR_RMS = 16

# Half the spacing of floating-point values at 1: the relative error of one rounding.
UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}

# bfloat16 and float16 are computed in float32 and rounded once, as in torch's math path: each
# element may be off by that rounding and by FLOAT32_ROUNDING_UNITS_LARGEST. float16 denormals are
# spaced by 2^-24.
ABSOLUTE_16BIT = {torch.bfloat16: 0.0, torch.float16: 2.0**-25}

# On matrix tiles, bfloat16 weights and score gradients are rounded once more, each by at most
# UNIT_ROUNDOFF: the largest error, in units of reference.operand_rounding. Half a unit is the root
# mean square of one rounding, and six times that is exceeded once in 10^9 results.
TILE_ROUNDING_UNITS_LARGEST = 3.0

# The same relative to the largest result, for comparisons without a model: a result is a sum of
# weights, and so its error no more than theirs; gradients are sums of differences that cancel.
TILE_SIZE_ROUNDED = 2.0**-6

# float32 on matrix tiles as sums of two bfloat16 parts, relative to the largest result: the parts
# leave up to 2^-17 of an element and their products leave out up to 2^-16; in gradients, terms
# cancel. The tests of the kernels see up to 2.7e-5.
TILE_PARTS_ROUNDED = 2.0**-14

# A float32 weight below 2^-126 of the largest in its row may be 0, and with it its contribution:
# the weight times values, scales and gradients, a product of up to 10^8.
FLOAT32_UNDERFLOW = 1e-30

# standard_attention against attention on values of order 1. In float64 both are within
# FLOAT64_ABSOLUTE of the exact result; in float32 each is within a few units in the last place of
# values up to 10. 16-bit results may round in opposite directions, on values up to 10.
CLOSE = {
    torch.float32: 2e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2.0**-4,
    torch.float16: 2.0**-7,
}

# Second derivatives in float64, relative to the largest: both sides evaluate the definition, with
# sums split differently.
SECOND_FLOAT64_RELATIVE = 1e-11

# The fuzzer makes 10,000 random calls per instruction set, whose worst error exceeds that of a few
# hundred calls, and gradients of slopes sum up to a hundred distances of a hundred. A wrong formula
# gives errors above 1e-6 in float64, the dtype of a quarter of the calls.
FUZZ_SLACK = 10.0

# The fuzzer's calls with NaN and Inf, to which the rounding model does not apply: scores reach some
# tens, which multiply the rounding error of a weight. The places of NaN are compared exactly.
FUZZ_NON_FINITE_TIMES_CLOSE = 50.0

# Flash against standard attention in float64, values of order 1, as the integration guide states.
# Rounding is far below (1e-13); a wrong scale, mask or head is far above.
GUIDE_FLOAT64 = 1e-10

# Flash against standard attention over some tens of training steps in float32: the rounding errors
# of each step feed the next through Adam, which turns relative differences of 1e-6 into steps of
# the same size.
TRAINING_LOSS_FLOAT32 = 1e-4

# Forecasts of flash_train in table units, for values up to 20: series converted to float32 and
# back, and sums of some tens of values. A forecast in wrong units is off by 1 or more.
FORECAST_FLOAT32 = 1e-5

# A whole model in float64 against the original: thousands of roundings on values up to 1e2. Any
# real error (swapped heads, a missing norm) is above 1e-6.
MODEL_FLOAT64 = 1e-10

# FEDformer's cross attention: its complex tanh has poles, near which rounding errors grow a
# thousandfold.
MODEL_COMPLEX_TANH = 1e-7

# A whole model in float32: a few times the original's own difference between float32 and float64,
# since the summation order differs; at least a few roundings of outputs of order 1, in case that
# difference happens to be small.
MODEL_FLOAT32_TIMES_ORIGINAL = 5.0
MODEL_FLOAT32_AT_LEAST = 1e-5

# A whole FEDformer with random options in float32: rounding errors grow a thousandfold near the
# poles of its complex tanh, in ten layers. A wrong formula gives errors of order 1.
MODEL_RANDOM_OPTIONS_FLOAT32 = 1e-3


def model_float32(gap: float) -> float:
    """The tolerance of a float32 output, where the original's own float32 error is `gap`."""
    return max(MODEL_FLOAT32_TIMES_ORIGINAL * gap, MODEL_FLOAT32_AT_LEAST)


# scaled_dot_product_attention in float32 against torch's in float64: at most twice the error of
# torch's own float32, for the reason above, or one rounding of the largest score times the largest
# input or output. Rounding a score s gives its weight a relative error of |s| 2**-24; torch's
# sample inputs reach 9, so that their scores reach 200.
SDPA_FLOAT32_TIMES_TORCH = 2.0
SDPA_FLOAT32_SCORE_ROUNDINGS = 1.0

# Second gradients of torch's sample inputs: scores of 200 multiply a rounding by 200 in each of the
# two derivatives, the second on top of the first, plus some sums. The unit is that of the compute
# dtype; 16-bit results are rounded once more.
SECOND_GRADIENT_ROUNDINGS = 5000.0

# The same in float64: roundings of 1e-16 on scores of 200 stay below 1e-13 of the largest value.
SDPA_FLOAT64_RELATIVE = 1e-12

# A torch module with and without the replacement, values of order 1: two summation orders through
# two layers and their norms. A missing mask or a swapped head is above 1e-2.
SDPA_MODULE = {torch.float32: 2e-5, torch.float64: 1e-12}

# Models of transformers against their eager attention, float32, relative to the largest element:
# two summation orders through a few layers, whose weights make scores of order 1. A missing mask,
# window or bias is above 1e-2.
TRANSFORMERS_EAGER = 1e-4

# The same in bfloat16: both sides round some tens of times per layer. The error of this package was
# 0.6 to 1.1 times that of eager.
TRANSFORMERS_BFLOAT16_TIMES_EAGER = 1.5
