#pragma once
// A product with one complex matrix per mode and head of a spectrum.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// spectrum [B, 2, n, heads * e] (dimension 1: real and imaginary parts), float32 or float64, and
/// complex weights [heads, e, o, n] -> [B, 2, n, heads * o]. Differentiable once: a second
/// derivative throws c10::NotImplementedError.
at::Tensor mix_modes(const at::Tensor& spectrum, const at::Tensor& weights);

}  // namespace flash::models
