#pragma once
// A convolution of width 3 over time, as matrix products.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// x [B, T, in], padded by its last two steps in front and its first two behind; weight [out, in,
/// 3], bias [out] -> [B, T + 2, out]. T is at least 2. The three neighbours of a step side by side
/// make it a product; a few samples' are formed at a time, and none is kept. Differentiable once.
FLASH_API at::Tensor circular_convolution(const at::Tensor& x, const at::Tensor& weight,
                                          const at::Tensor& bias);

}  // namespace flash::models
