#pragma once
// Private to ops/: the preconditions of _backward and _varlen_backward. Anyone can call these
// operators, and their kernels read as many elements as the sizes of query, key and value imply.

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/attention_checks.h"
#include "ops/forward_backward.h"
#include "ops/varlen.h"

namespace flash {

/// kTraced: compiled autograd traces with incoming gradients of arbitrary shape and dtype.
enum class Gradients { kReal, kTraced };

/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError unless the arguments are
/// valid for `flash::_backward`: grad_out and out of the shape of the output, in the dtype of query
/// or its `compute_dtype`; grad_lse and row_stats as the forward returns them; a seed if there is
/// dropout; every input whose gradient is `needed`.
Sizes check_backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
                     const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const ForwardResult& saved, const AttentionOptions& options,
                     const Needed& needed, Gradients gradients = Gradients::kReal);

/// The same for `flash::_varlen_backward`.
void check_packed_backward(const at::Tensor& grad_out, const Packed& packed,
                           const VarlenForward& saved, const AttentionOptions& options,
                           const VarlenNeeded& needed, Gradients gradients = Gradients::kReal);

}  // namespace flash
