#pragma once
// Which keys the queries of a tile attend, by the window and their positions.

#include <cstdint>
#include <limits>

#include "csrc/generic/product.h"
#include "csrc/params.h"

namespace flash {
namespace {

/// The most keys that one query attends, but for the bias.
inline int64_t most_attended(const ScoreParams& p, int64_t keys) {
  if (p.window_left < 0 || p.window_right < 0) return keys;
  return p.window_left >= keys || p.window_right >= keys
             ? keys
             : min_of(keys, p.window_left + p.window_right + 1);
}

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return min_of(max_of(x, low), high); }

/// a + b, or the limit beyond which it lies: positions and windows may be any numbers.
inline int64_t saturated_sum(int64_t a, int64_t b) {
  using Limits = std::numeric_limits<int64_t>;
  int64_t sum;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b < 0 ? Limits::min() : Limits::max();
}

/// Lane i stands for query `first + i` of one (batch, head), i < count; further lanes are padding.
template <class V>
class KeyRanges {
 public:
  static constexpr int kMaxLanes = V::kScoreVecs * V::kWidth;

  void start(const ScoreParams& p, const Shape& shape, int64_t batch, int64_t head, int64_t first,
             int64_t count) {
    count_ = count;
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
      // Not of a lane that attends nothing: it would draw the tile's range to itself.
      if (start_[lane] == limit_[lane]) continue;
      key_begin_ = min_of(key_begin_, start_[lane]);
      key_end_ = max_of(key_end_, limit_[lane]);
    }
    key_begin_ = min_of(key_begin_, key_end_);
    // Padding does what the last query does, so that it never asks for work of its own.
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

  /// No query of the tile attends a key before the first of these, or at or past the second.
  int64_t key_begin() const { return key_begin_; }
  int64_t key_end() const { return key_end_; }

  /// Whether every query of the tile may attend all of keys [key, key + count), but for the bias.
  bool is_unlimited(int64_t key, int64_t count) const {
    return key >= full_begin_ && key + count <= full_end_;
  }

  /// Cuts keys [key, key + count), of which some query attends the last, where the limits change
  /// what there is to do: calls f.operator()<live>(j, n, dead, limited) for keys key + j …
  /// key + j + n - 1, which no lane of the first `dead` vectors attends and some lane of the
  /// `live = kVecs - dead` others may. `limited`: not every such lane attends all of them.
  template <int kVecs, class F>
  void for_segments(int64_t key, int64_t count, F&& f) const {
    // In whole score tiles: what remains goes with the limited keys, not into a small tile of its
    // own.
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

  /// Which of keys [key, key + count) each lane may attend, as [begin, end) counted from `key`.
  void attended_keys(int64_t key, int64_t count, int64_t* begin, int64_t* end) const {
    for (int64_t i = 0; i < count_; ++i) {
      end[i] = max_of(0, min_of(limit_[i] - key, count));
      begin[i] = min_of(max_of(0, start_[i] - key), end[i]);
    }
  }

  /// A lane is at a position, and may attend the keys from its start up to before its limit.
  const int64_t* positions() const { return position_; }
  const int64_t* starts() const { return start_; }
  const int64_t* limits() const { return limit_; }

 private:
  int64_t count_;
  int64_t key_begin_, key_end_;    // what some lane attends
  int64_t full_begin_, full_end_;  // what every lane attends
  int64_t position_[kMaxLanes];
  int64_t start_[kMaxLanes], limit_[kMaxLanes];
  int64_t vector_end_[V::kScoreVecs];  // the largest limit of a vector of lanes
};

/// The first key that each lane attends and the one behind its last, counted from the first of
/// `count` keys: small integers, exact in V's numbers however long the sequence is.
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

  /// x of key j in the lanes of vector v that attend it, else `otherwise`.
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
