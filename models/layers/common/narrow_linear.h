#pragma once
// Linear maps from or to a few columns, whose time is that of reading or writing the wide side
// once.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// x weight^T: x [.., in], weight [out, in], float32 or float64 on the CPU, one of `in` and `out`
/// small -> [.., out]. Differentiable once: a second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor narrow_linear(const at::Tensor& x, const at::Tensor& weight);

}  // namespace flash::models
