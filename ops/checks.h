#pragma once
// Every precondition of the operator, in one place: the CPU and the Meta kernels both call it.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "ops/call_options.h"

namespace flash {

/// Sizes of one call after a 3-D input has been read as one head.
struct Sizes {
  c10::SymInt batch, heads, key_heads, value_heads, queries, keys, head_dim, value_dim;
  bool has_head_dimension;  ///< false for [B, L, D]
};

/// What the kernels compute in, and give row_stats and lse in: float32 for 16-bit numbers.
inline at::ScalarType compute_dtype(at::ScalarType dtype) {
  return at::isReducedFloatingType(dtype) ? at::kFloat : dtype;
}

/// One of the dtypes that attention takes.
void check_floating(const char* op, const char* name, at::ScalarType dtype);

/// Whether `other` may hold numbers for the scores of `query`: of its dtype, or of the one that the
/// kernels widen it to. And how an error spells that.
bool is_dtype_beside(const at::Tensor& query, const at::Tensor& other);
std::string dtypes_beside(const at::Tensor& query);

/// Throws c10::TypeError, c10::ValueError or c10::NotImplementedError unless the arguments are
/// those of `flash::attention`. Symbolic sizes are compared, never guessed.
Sizes check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const CallOptions& options);

/// A probability in [0, 1].
void check_dropout(double dropout);

/// `tensor`'s place in a broadcast to `rank` dimensions, aligned at the right as NumPy does, when a
/// 3-D call has no head dimension: the index where a dimension of size 1 must be put in, or -1.
/// A bias of full rank already has it.
int64_t missing_head_dimension(const Sizes& sizes, int64_t dims, int64_t rank);

}  // namespace flash
