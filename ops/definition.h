#pragma once
// Private to ops/: attention of some rows from its definition, in plain ATen, with every
// derivative.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "ops/checks.h"

namespace flash {

/// [B, H, L, D] of a tensor with or without the head dimension.
at::Tensor with_heads(const at::Tensor& t);

/// The options of queries first … first + count - 1: bias, positions and slopes cut to them where
/// they have a number for each query, with the head dimension that a 3-D call leaves out, and with
/// explicit positions.
CallOptions options_of_rows(const CallOptions& options, const Sizes& sizes, const at::Tensor& like,
                            int64_t first, int64_t count);

/// out [B, H, L, Dv] and, if asked for, lse [B, H, L].
struct Definition {
  at::Tensor out;
  at::Tensor lse;
};

/// query [B, H, L, D], key [B, Hk, S, D], value [B, Hv, S, Dv], options of `options_of_rows`.
/// `keep` is what dropout keeps, bool [B, H, L, S]. O(L S) memory.
Definition define_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const CallOptions& options, const std::optional<at::Tensor>& keep,
                            bool with_lse);

}  // namespace flash
