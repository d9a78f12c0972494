#pragma once
// Private to ops/: the seed of the dropout of attention, and the mask that a seed stands for.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flash {

/// A seed from torch's CPU generator: the one draw of a call with dropout.
int64_t draw_seed();

/// bool [batch, heads, queries, keys]: the weights that the kernels keep under `seed`, for queries
/// first … first + queries - 1.
at::Tensor dropout_mask_from_seed(int64_t batch, int64_t heads, int64_t first, int64_t queries,
                                  int64_t keys, double dropout, int64_t seed);

}  // namespace flash
