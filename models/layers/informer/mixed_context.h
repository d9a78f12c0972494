#pragma once
// What ProbSparse attention makes of its results: [B, H, L, d] is read as [B, L, H d], without a
// transposition, and projected. Most rows of a head are alike, or a running sum of the values.

#include <ATen/core/Tensor.h>

#include "layers/common/attention_projections.h"

namespace flash::models {

// attended [B, H, u, d] stands at positions (int64 [B, H, u], no duplicates) of the L rows of its
// head. All are differentiable in their first two arguments, once.

/// The other rows are the sum of value [B, H, L, d] up to their own. -> [B, L, H d]
at::Tensor mix_with_running_sum(const at::Tensor& attended, const at::Tensor& value,
                                const at::Tensor& positions);

/// The other rows are mean [B, H, d]. -> [B, L, H d]
at::Tensor mix_with_mean(const at::Tensor& attended, const at::Tensor& mean,
                         const at::Tensor& positions, int64_t length);

/// out_projection(mix_with_mean(..)) [B, L, D], from what is different alone: W (m + e) is W m,
/// which takes H products per head, and W e, which takes one per selected query.
at::Tensor project_mix_with_mean(const AttentionProjections& projections,
                                 const at::Tensor& attended, const at::Tensor& mean,
                                 const at::Tensor& positions, int64_t length);

/// Whether the latter takes fewer multiplications than projecting all rows.
bool is_mostly_mean(const AttentionProjections& projections, int64_t selected, int64_t length);

}  // namespace flash::models
