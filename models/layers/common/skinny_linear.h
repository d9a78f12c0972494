#pragma once
// Linear layers with few inputs or few outputs ("skinny" matrix products). They are bound by memory
// bandwidth: the time to read or write the wide side once.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// x weight^T: x [.., in], weight [out, in] -> [.., out], float32 or float64 on the CPU; meant for
/// a small `in` or `out`. Differentiable once: a second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& weight);

}  // namespace flash::models
