#pragma once
// Private to ops/: what the kernels do not compute, the derivative of the gradients of one call and
// forward-mode derivatives.

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
  at::Tensor seed;  ///< of the dropout mask, int64 [1]; not read without dropout
};

/// The derivative of sum_i <cotangents[i], gradient i> for the gradients of flash::_backward, by
/// what `wanted` says; undefined where it is not wanted or zero. `cotangents` may be undefined.
///
/// Some rows of queries after the other, each from the definition by torch's own derivatives:
/// memory of O(rows at once * S), whatever L is, and fewer rows at once the more keys there are.
std::array<at::Tensor, kTwiceDifferentiable> second_gradients(
    const BackwardCallInputs& call, const std::array<at::Tensor, kDifferentiable>& cotangents,
    const std::array<bool, kTwiceDifferentiable>& wanted);

/// The tangents of the gradients of flash::_backward, by those of what it has a derivative by, for
/// the current level of forward-mode differentiation; undefined where one is not `needed` or zero.
std::array<at::Tensor, kDifferentiable> gradient_tangents(const BackwardCallInputs& call,
                                                          const Needed& needed);

/// Those of out and lse, [B, H, L, Dv] and [B, H, L] ([B, L, Dv] and [B, L] of a 3-D call).
struct ForwardTangents {
  at::Tensor out;
  at::Tensor lse;
};
ForwardTangents forward_tangents(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const CallOptions& options,
                                 const at::Tensor& seed);

}  // namespace flash
