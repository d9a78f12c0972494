#pragma once
// Private to ops/: flash::_forward and flash::_backward, of which the recorded calls of attention
// and attention_with_lse consist, as C++ functions that go through the dispatcher.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <optional>
#include <tuple>

#include "ops/operator.h"

namespace flash {

/// flash::_forward: out, row_stats, seed.
///
/// out is of `compute_dtype`. Rounding it to 16 bits would cost the gradients more than their own
/// rounding does, since the difference of dP and rowsum(dO o O) is small where few keys are
/// attended. row_stats [2, B, H, L] (or [2, B, L]), of `compute_dtype`, holds row_max, the largest
/// score of each row, and row_sum, the sum of exp(score - row_max). seed is int64 [1] with dropout
/// and [0] without.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
ForwardResult call_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionOptions& options);

/// The number of inputs that attention is differentiable in, in this order: query, key, value,
/// bias, alibi_slopes, sinks.
constexpr size_t kDifferentiable = 6;
/// Which of their gradients a call of _backward computes.
using Needed = std::array<bool, kDifferentiable>;

/// flash::_backward: the gradients of those inputs; [0] where `needed` is false.
using BackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
BackwardResult call_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                             const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const ForwardResult& saved,
                             const AttentionOptions& options, const Needed& needed);

using ForwardOperator = AttentionOperator<ForwardResult>;
/// grad_out, grad_lse, query, key, value, out, row_stats, seed; options; needed.
using BackwardOperator = Operator<
    BackwardResult,
    Types<const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&,
          const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&>,
    AllOptionArguments, Types<Needed>>;

}  // namespace flash
