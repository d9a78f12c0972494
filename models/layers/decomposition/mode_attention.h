#pragma once
// Modes of one spectrum that ask those of another.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// tanh(q k^T) k over modes in each head, complex and without conjugation. query [B, 2, n, heads *
/// e] and key [B, 2, m, heads * e], real and imaginary parts, float32 or float64 -> [B, 2, n, heads
/// * e]. Differentiable once: a second derivative throws c10::NotImplementedError.
at::Tensor attend_modes(const at::Tensor& query, const at::Tensor& key, int64_t heads);

}  // namespace flash::models
