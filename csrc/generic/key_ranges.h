#pragma once
// The keys that the queries of a tile may attend, by window and position. Ignores the bias.

#include <cstdint>
#include <limits>

#include "csrc/generic/product.h"
#include "csrc/params.h"

namespace flash {
namespace {

struct Range {
  int64_t begin;
  int64_t end;
  bool empty() const { return begin >= end; }
};

/// The largest number of keys that one query attends, ignoring the bias.
inline int64_t most_attended(const ScoreParams& p, int64_t keys) {
  if (p.window_left < 0 || p.window_right < 0) return keys;
  return p.window_left >= keys || p.window_right >= keys
             ? keys
             : min_of(keys, p.window_left + p.window_right + 1);
}

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return min_of(max_of(x, low), high); }

/// a + b, saturated, because positions and windows may be any 64-bit integers.
inline int64_t saturated_sum(int64_t a, int64_t b) {
  using Limits = std::numeric_limits<int64_t>;
  int64_t sum;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b < 0 ? Limits::min() : Limits::max();
}

/// The key ranges of one tile. Lane i is query `first + i` of one (batch, head), i < count; lanes
/// from `count` on are padding.
template <class V>
class KeyRanges {
 public:
  static constexpr int kMaxLanes = V::kScoreVecs * V::kWidth;

  void start(const ScoreParams& p, const Shape& shape, int64_t batch, int64_t head, int64_t first,
             int64_t count) {
    count_ = count;
    if (p.window_left < 0 && p.window_right < 0 && p.positions == nullptr) {
      return start_unlimited(shape, first);
    }
    key_begin_ = full_end_ = shape.keys;
    key_end_ = full_begin_ = 0;
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int64_t query = first + lane;
      const int64_t position =
          p.positions == nullptr
              ? query + shape.keys - shape.queries
              : p.positions[batch * p.position_strides[0] + head * p.position_strides[1] +
                            query * p.position_strides[2]];
      const int64_t last =
          p.window_right < 0 ? shape.keys : saturated_sum(position, p.window_right);
      position_[lane] = position;
      limit_[lane] = clamp(last, -1, shape.keys - 1) + 1;
      start_[lane] =
          p.window_left < 0 ? 0 : clamp(saturated_sum(position, -p.window_left), 0, shape.keys);
      full_begin_ = max_of(full_begin_, start_[lane]);
      full_end_ = min_of(full_end_, limit_[lane]);
      // A lane that attends no key must not extend the range of the tile.
      if (start_[lane] == limit_[lane]) continue;
      key_begin_ = min_of(key_begin_, start_[lane]);
      key_end_ = max_of(key_end_, limit_[lane]);
    }
    key_begin_ = min_of(key_begin_, key_end_);
    // Padding copies the last query, so that it never adds work.
    for (int64_t lane = count_; lane < kMaxLanes; ++lane) {
      position_[lane] = count_ > 0 ? position_[count_ - 1] : 0;
      start_[lane] = count_ > 0 ? start_[count_ - 1] : 0;
      limit_[lane] = count_ > 0 ? limit_[count_ - 1] : 0;
    }
    for (int v = 0; v < V::kScoreVecs; ++v) {
      vector_end_[v] = 0;
      for (int i = 0; i < V::kWidth; ++i) {
        vector_end_[v] = max_of(vector_end_[v], limit_[v * V::kWidth + i]);
      }
    }
  }

  /// Every key that a query of the tile attends is in [key_begin, key_end).
  int64_t key_begin() const { return key_begin_; }
  int64_t key_end() const { return key_end_; }

  /// Whether every query of the tile may attend all of keys [key, key + count), ignoring the bias.
  bool is_unlimited(int64_t key, int64_t count) const {
    return key >= full_begin_ && key + count <= full_end_;
  }

  /// The keys of [key, key + count) that every query of the tile may attend, relative to `key`.
  Range unlimited_keys(int64_t key, int64_t count) const {
    const int64_t begin = clamp(full_begin_ - key, 0, count);
    return {begin, clamp(full_end_ - key, begin, count)};
  }

  /// Splits keys [key, key + count), the last of which some query must attend, into segments that
  /// need the same work. Calls f.operator()<live>(j, n, dead, limited) for keys key + j …
  /// key + j + n - 1. No lane of the first `dead` vectors attends them; lanes of the other
  /// live = kVecs - dead vectors may. `limited`: not all of these lanes attend all of the keys.
  template <int kVecs, class F>
  void for_segments(int64_t key, int64_t count, F&& f) const {
    // Unlimited segments are whole register blocks. The remainder joins the limited keys instead of
    // forming a small register block.
    constexpr int64_t kRows = V::score_rows(kVecs);
    const int64_t first = min_of(count, round_up(max_of(0, full_begin_ - key), kRows));
    if (first > 0) f.template operator()<kVecs>(int64_t{0}, first, 0, true);
    int64_t full = max_of(first, min_of(full_end_ - key, count));
    if (full < count) full -= (full - first) % kRows;
    if (full > first) f.template operator()<kVecs>(first, full - first, 0, false);
    int dead = 0;
    for (int64_t j = full; j < count;) {
      while (vector_end_[dead] <= key + j) ++dead;
      const int64_t end = min_of(count, vector_end_[dead] - key);
      with_vecs<kVecs>(kVecs - dead,
                       [&]<int kLive>() { f.template operator()<kLive>(j, end - j, dead, true); });
      j = end;
    }
  }

  /// Sets [begin, end) to the keys of [key, key + count) that each lane may attend, relative to
  /// `key`.
  void attended_keys(int64_t key, int64_t count, int64_t* begin, int64_t* end) const {
    for (int64_t i = 0; i < count_; ++i) {
      end[i] = max_of(0, min_of(limit_[i] - key, count));
      begin[i] = min_of(max_of(0, start_[i] - key), end[i]);
    }
  }

  /// Per lane: the position of its query, and the range [start, limit) of keys that it may attend.
  const int64_t* positions() const { return position_; }
  const int64_t* starts() const { return start_; }
  const int64_t* limits() const { return limit_; }

 private:
  // For queries that may attend every key: in short sequences, `start` takes 2% of the time.
  void start_unlimited(const Shape& shape, int64_t first) {
    key_begin_ = full_begin_ = 0;
    key_end_ = count_ > 0 ? shape.keys : 0;
    full_end_ = shape.keys;
    for (int64_t lane = 0; lane < kMaxLanes; ++lane) {
      position_[lane] = first + lane + shape.keys - shape.queries;
      start_[lane] = 0;
      limit_[lane] = shape.keys;
    }
    for (int v = 0; v < V::kScoreVecs; ++v) vector_end_[v] = shape.keys;
  }

  int64_t count_;
  int64_t key_begin_, key_end_;    // keys that some lane attends
  int64_t full_begin_, full_end_;  // keys that every lane attends
  int64_t position_[kMaxLanes];
  int64_t start_[kMaxLanes], limit_[kMaxLanes];
  int64_t vector_end_[V::kScoreVecs];  // the largest limit in each vector of lanes
};

/// The key range of each lane in registers, relative to the first of `count` keys: small integers
/// that are exact in V::Scalar for any sequence length.
template <class V, int kVecs>
class LaneLimits {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;

  LaneLimits(const int64_t* starts, const int64_t* limits, int64_t key, int64_t count) {
    alignas(64) T relative[2][kVecs * V::kWidth];
    for (int i = 0; i < kVecs * V::kWidth; ++i) {
      relative[0][i] = static_cast<T>(clamp(starts[i] - key, 0, count));
      relative[1][i] = static_cast<T>(clamp(limits[i] - key, 0, count));
    }
    for (int v = 0; v < kVecs; ++v) {
      start_[v] = V::load(relative[0] + v * V::kWidth);
      limit_[v] = V::load(relative[1] + v * V::kWidth);
    }
  }

  /// x in the lanes of vector v that may attend key j, else `otherwise`.
  Reg select(int64_t j, int v, Reg x, Reg otherwise) const {
    const Reg position = V::broadcast(static_cast<T>(j));
    x = V::if_less(position, limit_[v], x, otherwise);
    return V::if_less(position, start_[v], otherwise, x);
  }

 private:
  Reg start_[kVecs], limit_[kVecs];
};

}  // namespace
}  // namespace flash
