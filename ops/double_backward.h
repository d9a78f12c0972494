#pragma once
// Private to ops/: the derivative of the gradients of one call.

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "ops/operator.h"

namespace flash {

/// What flash::_backward has a derivative by: grad_out and grad_lse, then `kDifferentiable` inputs.
constexpr size_t kTwiceDifferentiable = 2 + kDifferentiable;

/// A call and what its gradients were asked for with.
struct BackwardCallInputs {
  at::Tensor grad_out;
  std::optional<at::Tensor> grad_lse;
  at::Tensor query, key, value;
  CallOptions options;
  int64_t seed = 0;  ///< of the dropout mask
};

/// The derivative of sum_i <cotangents[i], gradient i> for the gradients of flash::_backward, by
/// what `wanted` says; undefined where it is not wanted or zero. `cotangents` may be undefined.
///
/// Some rows of queries after the other, each from the definition by torch's own derivatives:
/// memory of O(rows at once * S), whatever L is.
std::array<at::Tensor, kTwiceDifferentiable> second_gradients(
    const BackwardCallInputs& call, const std::array<at::Tensor, kDifferentiable>& cotangents,
    const std::array<bool, kTwiceDifferentiable>& wanted);

}  // namespace flash
