#pragma once
// The scratch memory of one thread of tile_forward.h, and the block of keys and values in it.

#include <cstdint>

#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tile_parts.h"
#include "csrc/params.h"

namespace flash {
namespace {

/// Keys of a block: the scores of a tile fill half of a first-level cache.
constexpr int64_t kTileKeys = 128;
/// Tiles of queries that use each packed block, while it is in the second-level cache.
constexpr int64_t kMostTilesPerBlock = 8;

inline int64_t tile_count(const Shape& shape) { return ceil_div(shape.queries, kTileLanes); }
inline int64_t tiles_per_block(const Shape& shape) {
  return max_of(1, min_of(kMostTilesPerBlock, tile_count(shape)));
}
inline int64_t keys_per_block(const Shape& shape) {
  return max_of(kTileDepth, min_of(kTileKeys, round_up(shape.keys, kTileDepth)));
}

/// Of operands in several parts, sizes are those of one part.
struct TileForwardScratch {
  int64_t query_words, out_elements;  // of one tile
  int64_t weight_words, key_bytes, value_bytes;
  Word* queries;     // Q^T [part][D / 2][lanes] per tile of a group
  float* out;        // O^T [Dv][lanes] per tile of a group
  float* scores;     // S^T [block][lanes]
  float* bias;       // [block][lanes], if there is a bias
  Word* weights;     // P^T [part][block / 2][lanes]
  char* keys;        // K as a left operand, per part
  char* values;      // V^T as a left operand, per part
  BFloat16* padded;  // [lanes][D] while queries are packed
  BFloat16* stage;   // of for_parts, if elements are float
  float* columns;    // (scale Q)^T [D][lanes] for a block that tiles do not compute, if they are
  int64_t bytes;

  TileForwardScratch(const ForwardParams& p, void* memory) {
    const Shape& shape = p.shape;
    const int64_t block = keys_per_block(shape), tiles = tiles_per_block(shape);
    const int64_t steps = depth_steps(shape.head_dim), parts = parts_of(p);
    const bool is_float = parts > 1;
    query_words = steps * kTileWords * kTileLanes;
    out_elements = round_up(shape.value_dim, kTileRows) * kTileLanes;
    weight_words = block / 2 * kTileLanes;
    key_bytes = block / kTileRows * steps * kTileBytes;
    value_bytes = block / kTileDepth * ceil_div(shape.value_dim, kTileRows) * kTileBytes;
    Arena arena(memory);
    queries = arena.take<Word>(tiles * parts * query_words);
    out = arena.take<float>(tiles * out_elements);
    scores = arena.take<float>(block * kTileLanes);
    bias = arena.take<float>(p.score.bias_kind == BiasKind::kNone ? 0 : block * kTileLanes);
    weights = arena.take<Word>(parts * weight_words);
    keys = arena.take<char>(parts * key_bytes);
    values = arena.take<char>(parts * value_bytes);
    padded = arena.take<BFloat16>(kTileLanes * steps * kTileDepth);
    const int64_t widest = depth_steps(max_of(shape.head_dim, shape.value_dim)) * kTileDepth;
    stage = arena.take<BFloat16>(is_float ? parts * kTileDepth * widest : 0);
    columns = arena.take<float>(is_float ? shape.head_dim * kTileLanes : 0);
    bytes = arena.bytes();
  }
};

/// The current block of keys and values of one (batch, head), as left operands. Blocks start at
/// multiples of their size.
template <class V, int kParts>
class PackedBlock {
 public:
  using Rows = RowView<Element<kParts>>;

  PackedBlock(const ForwardParams& p, const TileForwardScratch& scratch)
      : p_(p), scratch_(scratch), size_(keys_per_block(p.shape)) {}

  void start(int64_t batch, int64_t head) {
    const Shape& shape = p_.shape;
    const auto rows_of = [&](const ConstRows& rows, int64_t heads) {
      return Rows{row_pointer<Element<kParts>>(rows, batch, head / (shape.heads / heads), 0),
                  rows.strides.row};
    };
    keys_ = rows_of(p_.key, shape.key_heads);
    values_ = rows_of(p_.value, shape.value_heads);
    first_ = -1;
  }

  int64_t size() const { return size_; }
  int64_t begin_of(int64_t key) const { return key / size_ * size_; }

  /// Packs the block that contains `key`, unless it is the current one.
  void seek(int64_t key) {
    if (first_ == begin_of(key)) return;
    first_ = begin_of(key);
    const int64_t count = min_of(size_, p_.shape.keys - first_);
    const Rows keys = {keys_.at(first_), keys_.stride};
    const Rows values = {values_.at(first_), values_.stride};
    pack_row_parts<V, kParts>(keys, count, p_.shape.head_dim, scratch_.stage, scratch_.keys,
                              scratch_.key_bytes);
    pack_transposed_parts<V, kParts>(values, count, p_.shape.value_dim, scratch_.stage,
                                     scratch_.values, scratch_.value_bytes);
    values_fit_ = Fit::kUnknown;
    if constexpr (kParts > 1) keys_fit_ = rows_fit_parts<V>(keys, count, p_.shape.head_dim);
  }

  /// K from `key`, a multiple of kTileDepth from the start of the block.
  LeftTiles keys(int64_t key) const {
    const int64_t row = depth_steps(p_.shape.head_dim) * kTileBytes;
    return {scratch_.keys + (key - first_) / kTileRows * row, row, kTileBytes, scratch_.key_bytes};
  }
  LeftTiles values(int64_t key) const {
    const int64_t step = ceil_div(p_.shape.value_dim, kTileRows) * kTileBytes;
    return {scratch_.values + (key - first_) / kTileDepth * step, kTileBytes, step,
            scratch_.value_bytes};
  }
  const Element<kParts>* key(int64_t key) const { return keys_.at(key); }
  int64_t key_stride() const { return keys_.stride; }
  const Element<kParts>* value(int64_t key) const { return values_.at(key); }

  /// Whether tiles may compute scores of these keys.
  bool keys_fit() const { return kParts == 1 || keys_fit_; }

  /// Whether tiles may multiply these values by weights, some of which are of masked keys if
  /// `has_masked`.
  bool values_fit(bool has_masked) {
    if (kParts == 1 && !has_masked) return true;
    if (values_fit_ == Fit::kUnknown) {
      const Rows rows = {values_.at(first_), values_.stride};
      const int64_t count = min_of(size_, p_.shape.keys - first_);
      values_fit_ = fit(rows, count) ? Fit::kYes : Fit::kNo;
    }
    return values_fit_ == Fit::kYes;
  }

 private:
  enum class Fit { kUnknown, kYes, kNo };

  bool fit(Rows rows, int64_t count) const {
    if constexpr (kParts == 1) {
      return rows_are_finite<V>(rows, count, p_.shape.value_dim);
    } else {
      return rows_fit_parts<V>(rows, count, p_.shape.value_dim);
    }
  }

  const ForwardParams& p_;
  const TileForwardScratch& scratch_;
  const int64_t size_;
  int64_t first_ = -1;
  bool keys_fit_ = false;
  Fit values_fit_ = Fit::kUnknown;
  Rows keys_ = {}, values_ = {};
};

}  // namespace
}  // namespace flash
