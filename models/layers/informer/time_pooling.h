#pragma once
// Max-pooling over time without a transposition.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// torch's max_pool1d(kernel 3, stride 2, padding 1) over the middle dimension:
/// [B, T, C] -> [B, floor((T + 1) / 2), C]. Keeps one byte per element. Differentiable once.
FLASH_API at::Tensor halve_by_maximum(const at::Tensor& x);

}  // namespace flash::models
