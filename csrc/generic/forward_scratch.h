#pragma once
// The scratch memory of one forward thread: the packed queries of a group of tiles, a block of
// scores, and float copies of keys, values and outputs that are stored in a 16-bit type.

#include <cstdint>

#include "csrc/generic/key_ranges.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tiles.h"
#include "csrc/params.h"

namespace flash {
namespace {

// A longer step would only use more cache. This also bounds the scratch for any block_size.
constexpr int64_t kMaxKeysPerStep = 256;

/// Keys per step: two blocks if the key sequence is long. That halves the cost of rescaling,
/// reading and writing the output per key, and sums of 128 terms (at the default block_size) are
/// still short. A short sequence would save few steps and keeps its scratch small instead.
inline int64_t keys_per_step(const Shape& shape, int64_t block_size) {
  const int64_t block = min_of(block_size, kMaxKeysPerStep);
  const int64_t step = shape.keys > 4 * block ? min_of(2 * block, kMaxKeysPerStep) : block;
  return max_of(1, min_of(step, shape.keys));
}

constexpr int64_t kMaxTilesPerGroup = 4;

/// Tiles of a group take each step together, so that a block of keys and values is fetched from a
/// distant cache, or converted from a 16-bit type, once for all of them. If a second-level cache
/// holds all keys, single tiles are as fast and need less scratch.
template <class V>
int64_t tiles_per_group(const ForwardParams& p) {
  constexpr int64_t kSecondLevelCache = 1024 * 1024;
  const int64_t row_bytes = (p.shape.head_dim + p.shape.value_dim) * sizeof(typename V::Scalar);
  const bool shares =
      p.storage != Storage::kNative || p.shape.keys * row_bytes >= kSecondLevelCache;
  return shares ? min_of(kMaxTilesPerGroup, max_of(1, QueryTiles<V>(p.shape.queries).count())) : 1;
}

template <class V>
struct ForwardScratch {
  using T = typename V::Scalar;
  static constexpr int64_t kLanes = QueryTiles<V>::kMaxLanes;
  T* queries;  // [D][lanes] per tile of a group
  T* scores;   // [block][lanes]
  T* bias;     // [block][lanes], if there is a bias
  T* keys;     // [block][D], if stored in 16 bits; [lanes][D] while queries are packed
  T* values;   // [block][Dv], if stored in 16 bits
  T* out;      // [lanes][Dv] per tile of a group, if stored in 16 bits
  int64_t bytes;

  ForwardScratch(const ForwardParams& p, void* memory) {
    const Shape& shape = p.shape;
    const int64_t block = keys_per_step(shape, p.block_size);
    const int64_t tiles = tiles_per_group<V>(p);
    const bool is_16_bit = p.storage != Storage::kNative;
    queries = static_cast<T*>(memory);
    scores = queries + tiles * shape.head_dim * kLanes;
    bias = scores + block * kLanes;
    keys = bias + (p.score.bias_kind != BiasKind::kNone ? block * kLanes : 0);
    values = keys + (is_16_bit ? max_of(block, kLanes) * shape.head_dim : 0);
    out = values + (is_16_bit ? block * shape.value_dim : 0);
    const T* end = out + (p.out_storage != Storage::kNative ? tiles * kLanes * shape.value_dim : 0);
    bytes = (end - queries) * static_cast<int64_t>(sizeof(T));
  }
};

/// The current block of keys and values of one (batch, head): in place, or converted to float block
/// by block.
template <class V>
class KeyBlock {
 public:
  using T = typename V::Scalar;

  KeyBlock(const ForwardParams& p, const ForwardScratch<V>& scratch)
      : p_(p), scratch_(scratch), size_(keys_per_step(p.shape, p.block_size)) {}

  /// Must also be called after the scratch was used for something else.
  void start(int64_t batch, int64_t head) {
    const Shape& shape = p_.shape;
    const int64_t value_head = head / (shape.heads / shape.value_heads);
    if (batch != batch_ || value_head != value_head_) finite_ = {0, 0};
    batch_ = batch;
    key_head_ = head / (shape.heads / shape.key_heads);
    value_head_ = value_head;
    if (is_in_place()) {
      keys_ = {row_pointer<T>(p_.key, batch, key_head_, 0), p_.key.strides.row};
      values_ = {row_pointer<T>(p_.value, batch, value_head_, 0), p_.value.strides.row};
    }
    first_ = is_in_place() ? 0 : -1;
  }

  /// The end of the step that starts at `key`, unless the keys end before. Converted blocks start
  /// at multiples of their size, whatever key a tile starts at, so that tiles share them.
  int64_t end_of_step(int64_t key) const {
    return is_in_place() ? key + size_ : begin_of(key) + size_;
  }

  /// Steps with a smaller order must come first.
  int64_t order(int64_t key) const { return is_in_place() ? 0 : begin_of(key); }

  /// Selects the block that contains `key` for the functions below.
  void seek(int64_t key) {
    if (is_in_place() || first_ == begin_of(key)) return;
    first_ = begin_of(key);
    const Shape& shape = p_.shape;
    const int64_t count = min_of(size_, shape.keys - first_);
    keys_ = read_rows<V>(p_.key, p_.storage, batch_, key_head_, first_, count, shape.head_dim,
                         scratch_.keys);
    values_ = read_rows<V>(p_.value, p_.storage, batch_, value_head_, first_, count,
                           shape.value_dim, scratch_.values);
  }

  /// Whether the values of these keys, which must be in the current block, are all finite.
  bool values_are_finite(int64_t key, int64_t count) {
    const Range range = {key, key + count};
    if (count == 0 || (range.begin >= finite_.begin && range.end <= finite_.end)) return true;
    if (!all_finite<V>(value(key), value_stride(), count, p_.shape.value_dim)) return false;
    const bool adjoins = range.begin <= finite_.end && range.end >= finite_.begin;
    finite_ =
        adjoins ? Range{min_of(range.begin, finite_.begin), max_of(range.end, finite_.end)} : range;
    return true;
  }

  const T* key(int64_t key) const { return keys_.at(key - first_); }
  const T* value(int64_t key) const { return values_.at(key - first_); }
  int64_t key_stride() const { return keys_.stride; }
  int64_t value_stride() const { return values_.stride; }

 private:
  bool is_in_place() const { return p_.storage == Storage::kNative; }
  int64_t begin_of(int64_t key) const { return key / size_ * size_; }

  const ForwardParams& p_;
  const ForwardScratch<V>& scratch_;
  const int64_t size_;
  int64_t batch_ = 0, key_head_ = 0, value_head_ = 0;
  int64_t first_ = -1;     // the first key of the current block
  Range finite_ = {0, 0};  // keys of this head whose values are known to be finite
  RowView<T> keys_ = {}, values_ = {};
};

}  // namespace
}  // namespace flash
