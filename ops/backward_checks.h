#pragma once
// Private to ops/: the preconditions of the operators behind the backward passes. Anyone can call
// them, and their kernels read as many elements as the sizes of query, key and value say.

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/operator.h"
#include "ops/varlen.h"

namespace flash {

/// Compiled autograd traces with gradients whose shape and dtype say nothing.
enum class Gradients { kReal, kTraced };

/// Throws unless the arguments are those of `flash::_backward`: grad_out and out of the shape and
/// dtype that the forward gives, or of the dtype that it computes in; grad_lse and row_stats
/// likewise; a seed if there is dropout; every input whose gradient is `needed`.
Sizes check_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                     const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const ForwardResult& saved, const CallOptions& options, const Needed& needed,
                     Gradients gradients = Gradients::kReal);

/// The same for `flash::_varlen_backward`.
void check_packed_backward(const at::Tensor& grad_out, const Packed& packed,
                           const VarlenForward& saved, const CallOptions& options,
                           const VarlenNeeded& needed, Gradients gradients = Gradients::kReal);

}  // namespace flash
