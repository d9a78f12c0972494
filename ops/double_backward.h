#pragma once
// Private to ops/: the derivatives that the kernels do not compute, those of the gradients and
// forward-mode ones. They are computed in blocks of rows from `math_attention`.

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "ops/forward_backward.h"

namespace flash {

/// The number of inputs that flash::_backward is differentiable in: grad_out, grad_lse, and the
/// `kDifferentiable` ones of the forward.
constexpr size_t kTwiceDifferentiable = 2 + kDifferentiable;

/// A forward call and the gradients of its results.
struct BackwardCallInputs {
  at::Tensor grad_out;
  std::optional<at::Tensor> grad_lse;
  at::Tensor query, key, value;
  AttentionOptions options;
  at::Tensor seed;  ///< int64 [1]; not read without dropout
};

/// The derivatives of sum_i <cotangents[i], gradient i>, where gradient i is a result of
/// flash::_backward, with respect to the `wanted` inputs; undefined where one is not wanted or is
/// zero. `cotangents` may be undefined.
///
/// Blocks of rows of queries are differentiated one at a time by torch's autograd. Memory is O(rows
/// of a block * S) for any L; the more keys there are, the fewer rows a block has.
std::array<at::Tensor, kTwiceDifferentiable> second_gradients(
    const BackwardCallInputs& call, const std::array<at::Tensor, kDifferentiable>& cotangents,
    const std::array<bool, kTwiceDifferentiable>& wanted);

/// The tangents of the results of flash::_backward from the tangents of its inputs, at the current
/// level of forward-mode differentiation; undefined where one is not `needed` or is zero.
std::array<at::Tensor, kDifferentiable> gradient_tangents(const BackwardCallInputs& call,
                                                          const Needed& needed);

/// The tangents of out [B, H, L, Dv] and lse [B, H, L] ([B, L, Dv] and [B, L] for a 3-D call).
struct ForwardTangents {
  at::Tensor out;
  at::Tensor lse;
};
ForwardTangents forward_tangents(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const AttentionOptions& options,
                                 const at::Tensor& seed);

}  // namespace flash
