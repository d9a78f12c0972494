#pragma once
// The scratch memory of one thread of tile_backward.h.

#include <cstdint>

#include "csrc/generic/backward_scratch.h"
#include "csrc/generic/tile_parts.h"

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

  // Of operands in several parts, sizes are those of one part.
  int64_t query_words, grad_words, grad_elements;  // of one tile
  int64_t query_pair_words, grad_pair_words, score_part_words;
  int64_t left_bytes, key_bytes, value_bytes, transposed_bytes;
  Word* queries;                          // Q^T [part][D / 2][lanes] per tile
  Word* grad_out;                         // dO^T [part][Dv / 2][lanes] per tile
  Word* query_pairs;                      // Q [part][queries / 2][32] per 32 columns
  Word* grad_pairs;                       // dO [part][queries / 2][32] per 32 columns
  float* grad_queries;                    // dQ^T [D][lanes] per tile
  float* weights;                         // S^T, then P^T [key][lanes]
  float* grad_scores;                     // dP^T, then dS^T [key][lanes]
  float* cap_derivative;                  // [key][lanes], if scores are capped
  float* bias;                            // [key][lanes], if there is a bias
  float *row_max, *inverse_sum, *delta;   // [kQueries]
  Word* score_words;                      // dS^T [part][key / 2][lanes] as a right operand
  char *left_weights, *left_scores;       // P^T and dS^T of the block, per part
  char *keys, *values, *transposed_keys;  // K, V and K^T, per part
  BFloat16* padded;                       // [lanes][D or Dv] while columns are packed
  BFloat16* stage;                        // of for_parts, if elements are float
  float* sums;                            // [key][32]
  void* fallback;                         // of backward.h
  int64_t bytes;

  TileBackwardScratch(const BackwardParams& p, void* memory) {
    const Shape& shape = p.shape;
    const int64_t steps = depth_steps(shape.head_dim), value_steps = depth_steps(shape.value_dim);
    const int64_t tiles = max_of(1, min_of(kTilesPerBlock, ceil_div(shape.queries, kTileLanes)));
    const int64_t parts = parts_of(p);
    constexpr int64_t kRowTiles = kKeys / kTileRows;
    query_words = steps * kTileWords * kTileLanes;
    grad_words = value_steps * kTileWords * kTileLanes;
    grad_elements = round_up(shape.head_dim, kTileRows) * kTileLanes;
    query_pair_words = tiles * query_words;
    grad_pair_words = tiles * grad_words;
    score_part_words = kKeys / 2 * kTileLanes;
    left_bytes = kRowTiles * tiles * kTileBytes;
    key_bytes = kRowTiles * steps * kTileBytes;
    value_bytes = kRowTiles * value_steps * kTileBytes;
    transposed_bytes = kKeys / kTileDepth * ceil_div(shape.head_dim, kTileRows) * kTileBytes;
    Arena arena(memory);
    queries = arena.take<Word>(tiles * parts * query_words);
    grad_out = arena.take<Word>(tiles * parts * grad_words);
    query_pairs = arena.take<Word>(parts * query_pair_words);
    grad_pairs = arena.take<Word>(parts * grad_pair_words);
    grad_queries = arena.take<float>(tiles * grad_elements);
    weights = arena.take<float>(kKeys * kStride);
    grad_scores = arena.take<float>(kKeys * kStride);
    cap_derivative = arena.take<float>(p.score.softcap > 0 ? kKeys * kStride : 0);
    bias = arena.take<float>(p.score.bias_kind == BiasKind::kNone ? 0 : kKeys * kTileLanes);
    row_max = arena.take<float>(kQueries);
    inverse_sum = arena.take<float>(kQueries);
    delta = arena.take<float>(kQueries);
    score_words = arena.take<Word>(parts * score_part_words);
    left_weights = arena.take<char>(parts * left_bytes);
    left_scores = arena.take<char>(parts * left_bytes);
    keys = arena.take<char>(parts * key_bytes);
    values = arena.take<char>(parts * value_bytes);
    transposed_keys = arena.take<char>(parts * transposed_bytes);
    const int64_t widest = kTileDepth * max_of(steps, value_steps);
    padded = arena.take<BFloat16>(kTileLanes * widest);
    stage = arena.take<BFloat16>(parts > 1 ? parts * kTileDepth * widest : 0);
    sums = arena.take<float>(kKeys * kTileLanes);
    fallback = arena.take<char>(BackwardScratch<Vector>(p, nullptr).bytes);
    bytes = arena.bytes();
  }
};

}  // namespace
}  // namespace flash
