#pragma once
// The hyperbolic tangent of complex numbers whose real and imaginary parts lie apart.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// parts [n, 2, m]: real parts [:, 0], imaginary parts [:, 1]; float32 or float64 -> the same
/// shape.
///
/// tanh(x + iy) = (sinh x cosh x + i sin y cos y) / (sinh^2 x + cos^2 y), which nowhere subtracts
/// what cancels, and does not overflow. float32 is within a few units in the last place of each
/// part except next to the poles i (pi/2 + k pi), where the result is as sensitive as the function.
/// Differentiable once: a second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor complex_tanh(const at::Tensor& parts);

}  // namespace flash::models
