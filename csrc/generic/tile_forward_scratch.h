#pragma once
// The scratch memory of one thread of tile_forward.h, and the block of keys and values in it.

#include <cstdint>

#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tile_packing.h"
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

struct TileForwardScratch {
  int64_t query_words, out_elements;  // of one tile
  Word* queries;                      // Q^T [D / 2][lanes] per tile of a group
  float* out;                         // O^T [Dv][lanes] per tile of a group
  float* scores;                      // S^T [block][lanes]
  float* bias;                        // [block][lanes], if there is a bias
  Word* weights;                      // P^T [block / 2][lanes]
  char* keys;                         // K as a left operand
  char* values;                       // V^T as a left operand
  BFloat16* padded;                   // [lanes][D] while queries are packed
  int64_t bytes;

  TileForwardScratch(const ForwardParams& p, void* memory) {
    const Shape& shape = p.shape;
    const int64_t block = keys_per_block(shape), tiles = tiles_per_block(shape);
    const int64_t steps = depth_steps(shape.head_dim);
    query_words = steps * kTileWords * kTileLanes;
    out_elements = round_up(shape.value_dim, kTileRows) * kTileLanes;
    Arena arena(memory);
    queries = arena.take<Word>(tiles * query_words);
    out = arena.take<float>(tiles * out_elements);
    scores = arena.take<float>(block * kTileLanes);
    bias = arena.take<float>(p.score.bias_kind == BiasKind::kNone ? 0 : block * kTileLanes);
    weights = arena.take<Word>(block / 2 * kTileLanes);
    keys = arena.take<char>(block / kTileRows * steps * kTileBytes);
    values =
        arena.take<char>(block / kTileDepth * ceil_div(shape.value_dim, kTileRows) * kTileBytes);
    padded = arena.take<BFloat16>(kTileLanes * steps * kTileDepth);
    bytes = arena.bytes();
  }
};

/// The current block of keys and values of one (batch, head), as left operands. Blocks start at
/// multiples of their size.
template <class V>
class PackedBlock {
 public:
  PackedBlock(const ForwardParams& p, const TileForwardScratch& scratch)
      : p_(p), scratch_(scratch), size_(keys_per_block(p.shape)) {}

  void start(int64_t batch, int64_t head) {
    const Shape& shape = p_.shape;
    const auto rows_of = [&](const ConstRows& rows, int64_t heads) {
      return BFloat16Rows{row_pointer<BFloat16>(rows, batch, head / (shape.heads / heads), 0),
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
    is_finite_ = Finite::kUnknown;
    const int64_t count = min_of(size_, p_.shape.keys - first_);
    pack_rows(at(keys_, first_), count, p_.shape.head_dim, scratch_.keys);
    pack_transposed_rows<V>(at(values_, first_), count, p_.shape.value_dim, scratch_.values);
  }

  /// K from `key`, a multiple of kTileDepth from the start of the block.
  LeftTiles keys(int64_t key) const {
    const int64_t row = depth_steps(p_.shape.head_dim) * kTileBytes;
    return {scratch_.keys + (key - first_) / kTileRows * row, row, kTileBytes};
  }
  LeftTiles values(int64_t key) const {
    const int64_t step = ceil_div(p_.shape.value_dim, kTileRows) * kTileBytes;
    return {scratch_.values + (key - first_) / kTileDepth * step, kTileBytes, step};
  }
  const BFloat16* value(int64_t key) const { return at(values_, key).data; }

  /// Whether all values of the block are finite.
  bool values_are_finite() {
    if (is_finite_ == Finite::kUnknown) {
      const int64_t count = min_of(size_, p_.shape.keys - first_);
      bool finite = true;
      for (int64_t j = 0; j < count; ++j) {
        finite &= row_is_finite<V>(value(first_ + j), p_.shape.value_dim);
      }
      is_finite_ = finite ? Finite::kYes : Finite::kNo;
    }
    return is_finite_ == Finite::kYes;
  }

 private:
  enum class Finite { kUnknown, kYes, kNo };

  static BFloat16Rows at(BFloat16Rows rows, int64_t row) {
    return {rows.data + row * rows.stride, rows.stride};
  }

  const ForwardParams& p_;
  const TileForwardScratch& scratch_;
  const int64_t size_;
  int64_t first_ = -1;
  Finite is_finite_ = Finite::kUnknown;
  BFloat16Rows keys_ = {}, values_ = {};
};

}  // namespace
}  // namespace flash
