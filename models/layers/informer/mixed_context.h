#pragma once
// The output of ProbSparse attention: [B, H, L, d] is read as [B, L, H d] without a transposition
// ("mixed") and projected. In most rows of a head it is the mean or a running sum of the values.

#include <ATen/core/Tensor.h>

#include "layers/common/attention_projections.h"

namespace flash::models {

// Of the L rows of a head, those at `positions` (int64 [B, H, u], no duplicates) are attended
// [B, H, u, d]. All functions are differentiable once, in their first two arguments.

/// The other rows are the sum of value [B, H, L, d] up to and including that row. -> [B, L, H d]
at::Tensor mix_with_running_sum(const at::Tensor& attended, const at::Tensor& value,
                                const at::Tensor& positions);

/// The other rows are mean [B, H, d]. -> [B, L, H d]
at::Tensor mix_with_mean(const at::Tensor& attended, const at::Tensor& mean,
                         const at::Tensor& positions, int64_t length);

/// out_projection(mix_with_mean(..)) [B, L, D] from the distinct rows only: W (m + e) = W m + W e,
/// where W m takes H products per head and W e one per selected query.
at::Tensor project_mix_with_mean(const AttentionProjections& projections,
                                 const at::Tensor& attended, const at::Tensor& mean,
                                 const at::Tensor& positions, int64_t length);

/// Whether project_mix_with_mean takes fewer multiplications than projecting all rows.
bool is_mostly_mean(const AttentionProjections& projections, int64_t selected, int64_t length);

}  // namespace flash::models
