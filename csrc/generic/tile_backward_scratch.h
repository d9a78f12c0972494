#pragma once
// The scratch memory of one thread of tile_backward.h.

#include <cstdint>

#include "csrc/generic/backward_scratch.h"
#include "csrc/generic/tile_product.h"

namespace flash {
namespace {

/// Tiles of queries in a block. More of them use each packed block of keys.
constexpr int64_t kTilesPerBlock = 8;

/// P and dS of one tile at a time.
template <class V>
struct BackwardBlockSize<TileVec<V>> {
  static constexpr int64_t kQueries = kTilesPerBlock * kTileLanes;
  static constexpr int64_t kStride = kTileLanes;
};

template <class Vector>
struct TileBackwardScratch {
  using V = TileVec<Vector>;
  static constexpr int64_t kQueries = BackwardScratch<V>::kQueries;
  static constexpr int64_t kStride = BackwardScratch<V>::kStride;
  static constexpr int64_t kKeys = BackwardScratch<V>::kMaxKeys;

  int64_t query_words, grad_words, grad_elements;  // of one tile
  Word* queries;                                   // Q^T [D / 2][lanes] per tile
  Word* grad_out;                                  // dO^T [Dv / 2][lanes] per tile
  Word* query_pairs;                               // Q [queries / 2][32] per 32 columns
  Word* grad_pairs;                                // dO [queries / 2][32] per 32 columns
  float* grad_queries;                             // dQ^T [D][lanes] per tile
  float* weights;                                  // S^T, then P^T [key][lanes]
  float* grad_scores;                              // dP^T, then dS^T [key][lanes]
  float* cap_derivative;                           // [key][lanes], if scores are capped
  float* bias;                                     // [key][lanes], if there is a bias
  float *row_max, *inverse_sum, *delta;            // [kQueries]
  Word* score_words;                               // dS^T [key / 2][lanes] as a right operand
  char *left_weights, *left_scores;                // P^T and dS^T of the block as left operands
  char *keys, *values, *transposed_keys;           // K, V and K^T as left operands
  BFloat16* padded;                                // [lanes][D or Dv] while columns are packed
  float* sums;                                     // [key][32]
  void* fallback;                                  // of backward.h
  int64_t bytes;

  TileBackwardScratch(const BackwardParams& p, void* memory) {
    const Shape& shape = p.shape;
    const int64_t steps = depth_steps(shape.head_dim), value_steps = depth_steps(shape.value_dim);
    const int64_t tiles = max_of(1, min_of(kTilesPerBlock, ceil_div(shape.queries, kTileLanes)));
    constexpr int64_t kRowTiles = kKeys / kTileRows;
    query_words = steps * kTileWords * kTileLanes;
    grad_words = value_steps * kTileWords * kTileLanes;
    grad_elements = round_up(shape.head_dim, kTileRows) * kTileLanes;
    Arena arena(memory);
    queries = arena.take<Word>(tiles * query_words);
    grad_out = arena.take<Word>(tiles * grad_words);
    query_pairs = arena.take<Word>(tiles * kTileWords * steps * kTileLanes);
    grad_pairs = arena.take<Word>(tiles * kTileWords * value_steps * kTileLanes);
    grad_queries = arena.take<float>(tiles * grad_elements);
    weights = arena.take<float>(kKeys * kStride);
    grad_scores = arena.take<float>(kKeys * kStride);
    cap_derivative = arena.take<float>(p.score.softcap > 0 ? kKeys * kStride : 0);
    bias = arena.take<float>(p.score.bias_kind == BiasKind::kNone ? 0 : kKeys * kTileLanes);
    row_max = arena.take<float>(kQueries);
    inverse_sum = arena.take<float>(kQueries);
    delta = arena.take<float>(kQueries);
    score_words = arena.take<Word>(kKeys / 2 * kTileLanes);
    left_weights = arena.take<char>(kRowTiles * tiles * kTileBytes);
    left_scores = arena.take<char>(kRowTiles * tiles * kTileBytes);
    keys = arena.take<char>(kRowTiles * steps * kTileBytes);
    values = arena.take<char>(kRowTiles * value_steps * kTileBytes);
    transposed_keys =
        arena.take<char>(kKeys / kTileDepth * ceil_div(shape.head_dim, kTileRows) * kTileBytes);
    padded = arena.take<BFloat16>(kTileLanes * kTileDepth * max_of(steps, value_steps));
    sums = arena.take<float>(kKeys * kTileLanes);
    fallback = arena.take<char>(BackwardScratch<Vector>(p, nullptr).bytes);
    bytes = arena.bytes();
  }
};

}  // namespace
}  // namespace flash
