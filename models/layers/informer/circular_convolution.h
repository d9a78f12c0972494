#pragma once
// A convolution of width 3 over time, as matrix products.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// x [B, T, in], padded with its last two steps at the start and its first two at the end; weight
/// [out, in, 3], bias [out] -> [B, T + 2, out]. T is at least 2. The three steps of each window
/// side by side make it a matrix product; that matrix exists for a few samples at a time and is not
/// kept. Differentiable once.
FLASH_API at::Tensor circular_convolution(const at::Tensor& x, const at::Tensor& weight,
                                          const at::Tensor& bias);

}  // namespace flash::models
