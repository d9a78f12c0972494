#pragma once
// Private to ops/: the preconditions of a call of attention, the same for every dispatch key.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "ops/options.h"

namespace flash {

/// The sizes of a call; a 3-D call has one head.
struct Sizes {
  c10::SymInt batch, heads, key_heads, value_heads, queries, keys, head_dim, value_dim;
  bool has_head_dimension;  ///< false for [B, L, D]
};

/// Throws c10::TypeError unless attention takes the dtype: float32, float64, bfloat16, float16.
void check_floating(const char* op, const char* name, at::ScalarType dtype);

/// Whether a floating option may have the dtype of `option`: that of `query`, or its
/// `compute_dtype`. `option_dtypes` lists both for an error message.
bool is_option_dtype(const at::Tensor& query, const at::Tensor& option);
std::string option_dtypes(const at::Tensor& query);

/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError unless the arguments are
/// valid for `flash::attention`. Symbolic sizes are compared, never guessed.
Sizes check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const AttentionOptions& options);

/// Throws c10::ValueError unless `dropout` is a probability in [0, 1].
void check_dropout(double dropout);

/// The index at which the head dimension, of size 1, must be inserted into a tensor of `dims`
/// dimensions that broadcasts to `rank` dimensions as in NumPy; -1 if none is missing. Only tensors
/// of a 3-D call lack it, and of those only the ones below full rank.
int64_t missing_head_dimension(const Sizes& sizes, int64_t dims, int64_t rank);

}  // namespace flash
