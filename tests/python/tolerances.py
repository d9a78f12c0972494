"""The one table of tolerances of the Python tests; each entry says why it is what it is."""

from __future__ import annotations

import torch

# float64, inputs standard normal: a few hundred roundings of 1.1e-16 on values of order 1 to 10
# stay below 1e-13; ten times that leaves room for the longest sums (2049 terms), and any real error
# (a key forgotten, a weight not rescaled) is above 1e-6.
FLOAT64_ABSOLUTE = 1e-12

# float32: at most twice the error that torch's own math path makes on the same inputs. Twice, not
# once, because two correct orders of summation differ by about that. It holds for the root mean
# square over each tensor, and for the largest error of each tensor.
FLOAT32_TIMES_MATH_PATH = 2.0

# The math path is sometimes exact by structure (one key: the softmax gradient cancels to exactly
# 0), so float32 may always be off by a few units of the rounding model of reference.rounding_model,
# which takes one independent rounding per product. A polynomial exponential within 2 ulp is 4 such
# units.
FLOAT32_ROUNDING_UNITS_RMS = 2.0

# The largest error of one draw is luck: the same kernel's is 0.5 to 4 times the math path's from
# seed to seed where their root mean squares are equal. So it may also be this many units.
FLOAT32_ROUNDING_UNITS_LARGEST = 8.0

# Of fewer numbers, or of fewer rows of queries, than this the root mean square is luck, too, and
# only the largest error is judged: the gradient of a bias that is one number for all scores, say,
# or those of 8 heads of one query, whose errors are as many as the rows that they share. Rows of
# the same scores (of a scale of 0, say) have one error, and count as one.
MIN_COUNT_FOR_RMS = 16

# Half the spacing of floats at 1: the relative error of one rounding.
UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}

# bfloat16 and float16 are computed in float32 and rounded once, as torch's math path does: each
# number may be off by that rounding, and by FLOAT32_ROUNDING_UNITS_LARGEST. What float16 has below
# its least normal number is spaced by 2^-24.
ABSOLUTE_16BIT = {torch.bfloat16: 0.0, torch.float16: 2.0**-25}

# A float32 weight below 2^-126 of the largest of its row may be 0, and what it would have added
# with it: a weight times products of values, scales and gradients, up to 10^8 of them.
FLOAT32_UNDERFLOW = 1e-30

# standard_attention against attention on values of order 1: both are within FLOAT64_ABSOLUTE of the
# truth in float64; in float32 each is within a few units of the last place of values up to 10.
# Two that were rounded to 16 bits may lie on either side of a rounding of values up to 10.
CLOSE = {
    torch.float32: 2e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2.0**-4,
    torch.float16: 2.0**-7,
}

# Second derivatives in float64, beside the largest of them: both sides go through the definition,
# with other cuts of its sums.
SECOND_FLOAT64_RELATIVE = 1e-11

# The fuzzer draws ten thousand calls on each instruction set, of which the unluckiest is further
# off than that of a few hundred, and gradients of slopes sum up to a hundred distances of a
# hundred. An error of form is above 1e-6 in float64, in which half of the calls are.
FUZZ_SLACK = 10.0

# The fuzzer's calls with NaN and infinities, where the model of rounding has no meaning: scores
# reach some tens there, which multiply the rounding of a weight. A NaN out of place is no number.
FUZZ_NON_FINITE_TIMES_CLOSE = 50.0

# Flash against standard attention in float64, values of order 1: the integration guide's figure.
# Rounding is far below it (1e-13); a wrong scale, mask or head is far above.
GUIDE_FLOAT64 = 1e-10

# Flash against standard attention over some tens of training steps in float32: each step's rounding
# feeds the next through Adam, which turns relative differences of 1e-6 into steps of the same size.
TRAINING_LOSS_FLOAT32 = 1e-4

# What flash_train writes, in units of a table with values up to 20: the series, brought to float32
# and back, and sums of some tens of its values. A forecast in other units is off by 1 and more.
FORECAST_FLOAT32 = 1e-5

# A whole model in float64 against the original: thousands of roundings on values up to 1e2. Any
# real error (a head swapped, a norm forgotten) is above 1e-6.
MODEL_FLOAT64 = 1e-10

# FEDformer's cross attention: its complex tanh has poles, near which roundings grow a thousandfold.
MODEL_COMPLEX_TANH = 1e-7

# A whole model in float32: some times the original's own distance between its two precisions, since
# the order of summation differs; where that is small by luck, some roundings of outputs of order 1.
MODEL_FLOAT32_TIMES_ORIGINAL = 5.0
MODEL_FLOAT32_AT_LEAST = 1e-5

# A whole FEDformer of options drawn at random, in float32: the poles of its complex tanh make a
# thousand of a rounding there, and ten layers of it. An error of form is of order 1.
MODEL_RANDOM_OPTIONS_FLOAT32 = 1e-3


def model_float32(gap: float) -> float:
    """What a float32 output may be off by where the original's is off by `gap`."""
    return max(MODEL_FLOAT32_TIMES_ORIGINAL * gap, MODEL_FLOAT32_AT_LEAST)


# scaled_dot_product_attention in float32 against torch's in float64: at most twice the error of
# torch's own float32, for the reason above, or one rounding of the largest score times the largest
# number that comes in or out. A rounding of a score s is a relative error of |s| 2**-24 of its
# weight, and torch's sample inputs reach 9, so that their scores reach 200.
SDPA_FLOAT32_TIMES_TORCH = 2.0
SDPA_FLOAT32_SCORE_ROUNDINGS = 1.0

# Second gradients of torch's sample inputs: scores of 200 make 200 roundings of one, in each of the
# two derivatives, of which the second multiplies what the first left; and some sums. Of what is
# computed in: 16-bit results have one rounding of their own besides.
SECOND_GRADIENT_ROUNDINGS = 5000.0

# The same in float64: roundings of 1e-16 on scores of 200 stay below 1e-13 of the largest number.
SDPA_FLOAT64_RELATIVE = 1e-12

# A module of torch, values of order 1, with and without the replacement: two orders of summation
# through two layers and their norms. A lost mask or a swapped head is above 1e-2.
SDPA_MODULE = {torch.float32: 2e-5, torch.float64: 1e-12}

# A small language model with random weights, logits of order 1 and gradients up to 10, float32.
SDPA_TRANSFORMER = 1e-4
