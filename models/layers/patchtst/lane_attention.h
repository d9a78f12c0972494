#pragma once
// Attention of many short sequences, computed side by side. PatchTST has a dozen patches and
// hundreds of heads, for which the operator's preparation of each head takes as long as its
// products.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// Whether lane_attention is for these inputs: float32 or float64 on the CPU, up to 64 positions.
FLASH_API bool fits_lanes(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);

/// softmax(scale query key^T) value: query [B, H, L, D], key [B, H, S, D], value [B, H, S, E]
/// -> [B, H, L, E], contiguous. Differentiable any number of times.
FLASH_API at::Tensor lane_attention(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, double scale);

}  // namespace flash::models
