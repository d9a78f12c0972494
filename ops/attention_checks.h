#pragma once
// Private to ops/: the preconditions of a call of attention, for every dispatch key alike.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "ops/options.h"

namespace flash {

/// Sizes of one call; a 3-D call has one head.
struct Sizes {
  c10::SymInt batch, heads, key_heads, value_heads, queries, keys, head_dim, value_dim;
  bool has_head_dimension;  ///< false for [B, L, D]
};

/// Throws c10::TypeError unless attention takes the dtype: float32, float64, bfloat16, float16.
void check_floating(const char* op, const char* name, at::ScalarType dtype);

/// Whether a floating option may be of the dtype of `option` when query is of that of `query`: the
/// same, or the `compute_dtype` of it. And how an error message lists them.
bool is_option_dtype(const at::Tensor& query, const at::Tensor& option);
std::string option_dtypes(const at::Tensor& query);

/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError unless the arguments are
/// valid for `flash::attention`. Symbolic sizes are compared, never guessed.
Sizes check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const AttentionOptions& options);

/// Throws c10::ValueError unless `dropout` is a probability in [0, 1].
void check_dropout(double dropout);

/// Where a tensor of `dims` dimensions, broadcast to `rank` dimensions aligned at the right as in
/// NumPy, lacks the head dimension because the call is 3-D: the index at which a dimension of size
/// 1 is to be inserted, or -1. A bias of full rank has it.
int64_t missing_head_dimension(const Sizes& sizes, int64_t dims, int64_t rank);

}  // namespace flash
