#pragma once
// The projections of residual attention, fused with splitting and merging heads.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <array>

#include "layers/common/linear.h"

namespace flash::models {

/// What one layer passes to the next: standard attention its scores, flash attention the queries
/// and keys whose products are these scores.
struct ScoreHistory {
  at::Tensor scores;   ///< [B, H, T, T], standard only
  at::Tensor queries;  ///< [B, H, T, layers * d], scaled, flash only
  at::Tensor keys;     ///< [B, H, T, layers * d], flash only
  int64_t layers = 1;  ///< number of layers that the first one reserves memory for
};

// Both functions are differentiable any number of times. They process a few batch elements at a
// time, so that the packed matrix stays in the cache between product and heads. Heads are
// contiguous, because attention reads small heads fastest that way.

/// The layers of queries, keys and values of x [B, T, D], weights [H d, D] and biases [H d], split
/// into heads. Appends queries and keys to `history`, which may be empty, and returns the values
/// [B, H, T, d].
FLASH_API at::Tensor project_heads(const at::Tensor& x, const std::array<LinearWeights, 3>& layers,
                                   int64_t heads, ScoreHistory& history);

/// merged(x) weight^T + bias, where x [B, H, T, d] is merged to [B, T, H d]: weight [D, H d], bias
/// [D] -> [B, T, D]
FLASH_API at::Tensor merge_heads(const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias);

}  // namespace flash::models
