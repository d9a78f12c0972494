#pragma once
// Attention between the modes of two spectra.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// tanh(q k^T) k over modes in each head, complex and without conjugation. Dimension 1 holds real
/// and imaginary parts: query [B, 2, n, heads * e], key [B, 2, m, heads * e]
/// -> [B, 2, n, heads * e], float32 or float64. Differentiable once: a second derivative throws
/// c10::NotImplementedError.
at::Tensor attend_modes(const at::Tensor& query, const at::Tensor& key, int64_t heads);

}  // namespace flash::models
