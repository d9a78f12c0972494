#pragma once
// The hyperbolic tangent of complex numbers whose real and imaginary parts lie apart.

#include <flash_attention/export.h>

#include <cstdint>

namespace flash::models {

// All arrays: `count` real parts and then as many imaginary parts. `out` may be one of the others.

/// tanh(x + iy) = (sinh x cosh x + i sin y cos y) / (sinh^2 x + cos^2 y), which nowhere subtracts
/// what cancels, and does not overflow. float32 is within a few units in the last place of each
/// part except next to the poles i (pi/2 + k pi), where the result is as sensitive as the function.
FLASH_API void complex_tanh(const float* in, float* out, int64_t count);
FLASH_API void complex_tanh(const double* in, double* out, int64_t count);

/// From the function's result and the gradient of that to the gradient of its argument.
FLASH_API void complex_tanh_backward(const float* result, const float* gradient, float* out,
                                     int64_t count);
FLASH_API void complex_tanh_backward(const double* result, const double* gradient, double* out,
                                     int64_t count);

}  // namespace flash::models
