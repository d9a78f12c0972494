#pragma once
// Private to ops/: attention in plain ATen operators, which has every derivative. The reference for
// the kernels, and what second and forward-mode derivatives are computed from.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "ops/attention_checks.h"

namespace flash {

/// `t` as [B, H, L, D], with or without a head dimension of its own.
at::Tensor with_heads(const at::Tensor& t);

/// The options for queries first … first + count - 1: bias and positions cut to them unless they
/// broadcast over queries, with the head dimension that a 3-D call lacks, and positions made
/// explicit.
AttentionOptions options_of_rows(const AttentionOptions& options, const Sizes& sizes,
                                 const at::Tensor& like, int64_t first, int64_t count);

/// out [B, H, L, Dv] and lse [B, H, L]; lse is undefined unless `with_lse`.
struct MathResult {
  at::Tensor out;
  at::Tensor lse;
};

/// query [B, H, L, D], key [B, Hk, S, D], value [B, Hv, S, Dv], options from `options_of_rows`.
/// `keep`, bool [B, H, L, S], is True where dropout keeps a weight. O(L S) memory.
MathResult math_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const AttentionOptions& options, const std::optional<at::Tensor>& keep,
                          bool with_lse);

}  // namespace flash
