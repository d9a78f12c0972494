#pragma once
// The regularised incomplete beta function, which ATen lacks.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// I_x(a, b) for a, b > 0 and x in [0, 1], element by element: float64 tensors of one shape, result
/// likewise, absolute error some 3e-15 max(a, b, 1). NaN where an argument is NaN. No gradient.
at::Tensor incomplete_beta(const at::Tensor& a, const at::Tensor& b, const at::Tensor& x);

}  // namespace flash::models
