#pragma once
// Private to ops/: the tensors of a call as autocast wants them.

#include <ATen/core/Tensor.h>

#include "ops/call_options.h"

namespace flash {

/// Query, key, value and options in the lower precision that autocast asks for, as far as it
/// reaches: float64 stays, and beside 16-bit queries so do a bias, slopes and sinks in float32.
struct AutocastInputs {
  AutocastInputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const CallOptions& options);

  at::Tensor query, key, value;
  CallOptions options;
};

}  // namespace flash
