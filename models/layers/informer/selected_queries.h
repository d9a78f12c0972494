#pragma once
// The projections of attention for a few selected queries.

#include <ATen/core/Tensor.h>

#include <functional>

#include "layers/common/attention_projections.h"

namespace flash::models {

/// query [B, H, L, d] and key [B, H, S, d] -> positions of the selected queries, int64 [B, H, u]
/// without duplicates. Called without recording gradients.
using Selection = std::function<at::Tensor(const at::Tensor& query, const at::Tensor& key)>;

struct SelectedQueries {
  at::Tensor query;      ///< [B, H, u, d]
  at::Tensor key;        ///< [B, H, S, d]
  at::Tensor value;      ///< [B, H, S, d]
  at::Tensor positions;  ///< int64 [B, H, u]
};

/// Projects x [B, L, D] to queries and memory [B, S, D] to keys and values, and selects queries.
///
/// The selection compares all queries, so all are computed, but they are not kept. The backward
/// uses the selected rows of x only: with u of L queries it takes u / L of the time.
SelectedQueries project_and_select(const AttentionProjections& projections, const at::Tensor& x,
                                   const at::Tensor& memory, const Selection& select);

}  // namespace flash::models
