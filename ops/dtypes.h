#pragma once
// Private to ops/: the dtype that the kernels compute in, and conversions to it.

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/options.h"

namespace flash {

/// float32 for the 16-bit types, otherwise the dtype itself. row_stats and lse have it too.
inline at::ScalarType compute_dtype(at::ScalarType dtype) {
  return at::isReducedFloatingType(dtype) ? at::kFloat : dtype;
}

/// `t`, or a copy in `dtype`. Recorded and differentiable. Unlike t.to(), it does not enter the
/// dispatcher if there is nothing to convert.
at::Tensor in_dtype(const at::Tensor& t, at::ScalarType dtype);

/// `t` in its `compute_dtype`.
at::Tensor in_compute_dtype(const at::Tensor& t);
std::optional<at::Tensor> in_compute_dtype(const std::optional<at::Tensor>& t);
/// The options with the tensors of `differentiable_options` in their `compute_dtype`.
AttentionOptions in_compute_dtype(AttentionOptions options);

}  // namespace flash
