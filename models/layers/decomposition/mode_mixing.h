#pragma once
// A complex matrix of its own for each mode and head of a spectrum.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// spectrum [B, 2, n, heads * e], real and imaginary parts, float32 or float64; complex weights
/// [heads, e, o, n] -> [B, 2, n, heads * o]. Differentiable once: a second derivative throws
/// c10::NotImplementedError.
at::Tensor mix_modes(const at::Tensor& spectrum, const at::Tensor& weights);

}  // namespace flash::models
