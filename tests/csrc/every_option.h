#pragma once
// Shapes and options that every attention kernel is compared with the reference at.

#include "tests/csrc/problem.h"

namespace flash::testing {

inline const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 1},      {2, 2, 2, 2, 7, 9, 3, 5},      {1, 4, 2, 1, 33, 65, 40, 24},
    {1, 1, 1, 1, 97, 130, 16, 33}, {1, 2, 1, 2, 130, 64, 65, 16}, {1, 1, 1, 1, 257, 200, 8, 8},
};
inline constexpr BiasKind kAdditive = BiasKind::kAdditive, kBoolean = BiasKind::kBoolean;
inline const Options kEveryOption[] = {
    {},
    {.causal = true},
    {.bias = kAdditive},
    {.dropout = 0.4},
    {.causal = true, .dropout = 0.2, .bias = kAdditive, .block_size = 10},
    {.block_size = 1},
    {.left = 5, .right = 20},
    {.left = 0, .right = 0},
    {.causal = true, .left = 40},
    {.block_size = 16, .right = 3},
    {.softcap = 0.8},
    {.slopes = true},
    {.sinks = 1},
    {.bias = kBoolean},
    {.causal = true, .bias = kBoolean, .bias_per_key = true, .grad_lse = true},
    {.bias = kAdditive, .bias_per_key = true, .layout = Layout::kGaps},
    {.bias = kAdditive, .left = 20, .right = 7, .layout = Layout::kHeadsAfterLength},
    {.causal = true, .positions = Positions::kRandom, .grad_lse = true},
    {.left = 30, .right = 10, .slopes = true, .positions = Positions::kRandom},
    {.sinks = 1, .positions = Positions::kRandom, .grad_lse = true, .layout = Layout::kGaps},
    {.sinks = 1000, .grad_lse = true},
    {.causal = true, .sinks = 1, .positions = Positions::kBeforeEveryKey, .grad_lse = true},
    {.causal = true, .bias = kAdditive, .positions = Positions::kBeforeEveryKey},
    {.dropout = 0.2,
     .bias = kAdditive,
     .block_size = 24,
     .left = 30,
     .right = 9,
     .softcap = 2,
     .slopes = true,
     .sinks = 1},
};

}  // namespace flash::testing
