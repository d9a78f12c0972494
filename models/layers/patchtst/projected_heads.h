#pragma once
// The ways into and out of residual attention: the layers that make heads of rows and rows of
// heads.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash::models {

/// What one layer hands to the next. Standard attention hands on its scores, flash attention the
/// queries and keys that give those scores.
struct ScoreHistory {
  at::Tensor scores;   ///< [B, H, T, T], standard only
  at::Tensor queries;  ///< [B, H, T, layers * d], scaled, flash only
  at::Tensor keys;     ///< [B, H, T, layers * d], flash only
  int64_t layers = 1;  ///< that will append, and find room in the memory of the first
};

// Both are differentiable any number of times. They go through the batch a few elements at a time:
// between the product and the heads a matrix never leaves the cache. Heads are contiguous, as
// attention reads them fastest where they are narrow.

/// x weight^T + bias of x [B, T, D], weight [3 H d, D] and bias [3 H d], queries, keys and values
/// one below the other, split into heads. Appends queries and keys to `history`, which may be
/// empty, and returns the values [B, H, T, d].
FLASH_API at::Tensor project_heads(const at::Tensor& x, const at::Tensor& weight,
                                   const at::Tensor& bias, int64_t heads, ScoreHistory& history);

/// x weight^T + bias of the heads x [B, H, T, d] side by side, weight [D, H d] and bias [D]
/// -> [B, T, D]
FLASH_API at::Tensor merge_heads(const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias);

}  // namespace flash::models
