#pragma once
// The scratch memory of one backward thread: a packed block of queries, and its weights.

#include <cstdint>

#include "csrc/generic/tiles.h"
#include "csrc/params.h"

namespace flash {
namespace {

/// Tiles of queries in a block.
constexpr int64_t kBlockTiles = 4;

/// Queries of a block, and the elements from one row of P or dS to the next.
template <class V>
struct BackwardBlockSize {
  static constexpr int64_t kQueries = kBlockTiles * QueryTiles<V>::kMaxLanes;
  // Padded: with a power of two as the stride, rows of P and dS would share cache sets.
  static constexpr int64_t kStride = kQueries + 16;
};

template <class V>
struct BackwardScratch {
  using T = typename V::Scalar;
  static constexpr int64_t kQueries = BackwardBlockSize<V>::kQueries;
  static constexpr int64_t kStride = BackwardBlockSize<V>::kStride;
  static constexpr int64_t kMaxKeys = 128;

  int64_t block;
  T* queries;         // per tile [D][lanes], scaled
  T* grad_out;        // per tile [Dv][lanes], scaled
  T* weights;         // [block][kStride]
  T* grad_scores;     // [block][kStride]
  T* row_max;         // [kQueries]
  T* inverse_sum;     // [kQueries]
  T* delta;           // [kQueries]
  T* bias;            // [block][lanes], if there is a bias
  T* cap_derivative;  // [block][kStride], if scores are capped: 1 - tanh^2
  // Float copies of rows stored in a 16-bit type.
  T* query_rows;     // [kQueries][D]
  T* grad_out_rows;  // [kQueries][Dv]
  T* key_rows;       // [block][D]
  T* value_rows;     // [max(block, W)][Dv]; also holds W rows of out
  int64_t bytes;

  BackwardScratch(const BackwardParams& p, void* memory) {
    const Shape& shape = p.shape;
    block = max_of(1, min_of(min_of(p.block_size, kMaxKeys), shape.keys));
    queries = static_cast<T*>(memory);
    grad_out = queries + shape.head_dim * kQueries;
    weights = grad_out + shape.value_dim * kQueries;
    grad_scores = weights + block * kStride;
    row_max = grad_scores + block * kStride;
    inverse_sum = row_max + kQueries;
    delta = inverse_sum + kQueries;
    bias = delta + kQueries;
    const bool has_bias = p.score.bias_kind != BiasKind::kNone;
    cap_derivative = bias + (has_bias ? block * QueryTiles<V>::kMaxLanes : 0);
    query_rows = cap_derivative + (p.score.softcap > 0 ? block * kStride : 0);
    const bool is_16_bit = p.storage != Storage::kNative || p.out_storage != Storage::kNative ||
                           p.grad_out_storage != Storage::kNative;
    grad_out_rows = query_rows + (is_16_bit ? kQueries * shape.head_dim : 0);
    key_rows = grad_out_rows + (is_16_bit ? kQueries * shape.value_dim : 0);
    value_rows = key_rows + (is_16_bit ? block * shape.head_dim : 0);
    const T* end = value_rows + (is_16_bit ? max_of(block, V::kWidth) * shape.value_dim : 0);
    bytes = (end - queries) * static_cast<int64_t>(sizeof(T));
  }
};

}  // namespace
}  // namespace flash
