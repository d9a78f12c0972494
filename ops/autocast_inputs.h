#pragma once
// Private to ops/: the tensors of a call as autocast converts them.

#include <ATen/core/Tensor.h>

#include "ops/options.h"

namespace flash {

/// Query, key, value and options in autocast's lower precision. As in torch, float64 tensors are
/// left alone; a float32 bias, alibi_slopes or sinks stays float32, since attention takes that with
/// 16-bit queries.
struct AutocastInputs {
  AutocastInputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const AttentionOptions& options);

  at::Tensor query, key, value;
  AttentionOptions options;
};

}  // namespace flash
