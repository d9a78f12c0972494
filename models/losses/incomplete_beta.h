#pragma once
// The regularised incomplete beta function, which ATen lacks.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// I_x(a, b) elementwise, for a, b > 0 and x in [0, 1]. All tensors are float64 and have the same
/// shape. The absolute error is about 3e-15 max(a, b, 1). NaN for NaN arguments. Not
/// differentiable.
at::Tensor incomplete_beta(const at::Tensor& a, const at::Tensor& b, const at::Tensor& x);

}  // namespace flash::models
