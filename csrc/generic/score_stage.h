#pragma once
// Everything that happens to a score between the product and the softmax, and to a weight after it:
// causal limits, bias, boolean mask, dropout. A new option (window, ALiBi, softcap, sinks) is added
// here, to `apply` and `excludes`, and to ScoreParams; the tile loops do not change.

#include <cstdint>
#include <limits>

#include "csrc/generic/product.h"
#include "csrc/params.h"
#include "csrc/philox.h"

namespace flash {
namespace {

/// Whether some query may be kept from some key: then NaN of a masked key must be looked for.
inline bool can_exclude(const ScoreParams& p) { return p.causal || p.bias_kind != BiasKind::kNone; }

/// Lane i stands for query `first + i` of one (batch, head), i < count; further lanes are padding.
template <class V>
class ScoreStage {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int kMaxLanes = V::kScoreVecs * V::kWidth;

  void start(const ScoreParams& p, const Shape& shape, int64_t batch, int64_t head, int64_t first,
             int64_t count, T* bias_tile) {
    params_ = &p;
    batch_head_ = batch * shape.heads + head;
    first_ = first;
    count_ = count;
    keys_ = shape.keys;
    bias_tile_ = bias_tile;
    bias_offset_ = batch * p.bias_strides[0] + head * p.bias_strides[1] + first * p.bias_strides[2];
    dropout_key_ = philox_key(p.dropout_seed);
    dropout_threshold_ = dropout_threshold(p.dropout);
    set_limits(p, shape, batch, head);
  }

  /// No query of the tile attends a key at or past this.
  int64_t key_end() const { return key_end_; }

  /// Whether scores against keys [key, key + count) pass through unchanged.
  bool is_plain(int64_t key, int64_t count) const {
    return params_->bias_kind == BiasKind::kNone && is_unlimited(key, count);
  }

  /// Whether every query of the tile may attend all of keys [key, key + count), but for the bias.
  bool is_unlimited(int64_t key, int64_t count) const { return key + count <= full_end_; }

  /// Cuts keys [key, key + count), of which some query attends the last, where the limits change
  /// what there is to do: calls f.operator()<live>(j, n, dead, limited) for keys key + j …
  /// key + j + n - 1, which no lane of the first `dead` vectors attends and some lane of the
  /// `live = kVecs - dead` others does. `limited`: not every such lane attends all of them.
  template <int kVecs, class F>
  void for_segments(int64_t key, int64_t count, F&& f) const {
    int64_t full = max_of(0, min_of(full_end_ - key, count));
    // In whole score tiles: what remains goes with the limited keys, not into a small tile of its own.
    if (full < count) full -= full % V::score_rows(kVecs);
    if (full > 0) f.template operator()<kVecs>(int64_t{0}, full, 0, false);
    int dead = 0;
    for (int64_t j = full; j < count;) {
      while (vector_end_[dead] <= key + j) ++dead;
      const int64_t end = min_of(count, vector_end_[dead] - key);
      with_vecs<kVecs>(kVecs - dead,
                       [&]<int kLive>() { f.template operator()<kLive>(j, end - j, dead, true); });
      j = end;
    }
  }

  /// How many of keys [key, key + count) each lane may attend, into end[lane].
  void attended_keys(int64_t key, int64_t count, int64_t* end) const {
    for (int64_t i = 0; i < count_; ++i) end[i] = max_of(0, min_of(limit_[i] - key, count));
  }
  int64_t limit(int64_t lane) const { return limit_[lane]; }

  /// Reads the bias of keys [key, key + count), which `apply` then adds.
  template <int kVecs>
  void start_block(int64_t key, int64_t count) {
    if (params_->bias_kind != BiasKind::kNone) load_bias<kVecs>(key, count);
  }

  /// Turns raw scores s[key][lane] of one segment into final ones: -inf where a query may not attend.
  /// `max` is raised to the largest score of each lane. `block` is the key that `start_block` was
  /// told, of a tile of kTileVecs vectors.
  template <int kTileVecs, int kVecs>
  void apply(T* s, int64_t stride, int64_t block, int64_t j, int64_t count, bool limited,
             Reg* max) const {
    constexpr int kDead = kTileVecs - kVecs;
    const T* bias = bias_tile_ + (j * kTileVecs + kDead) * V::kWidth;
    const int64_t* limits = limit_ + kDead * V::kWidth;
    constexpr int64_t kBiasStride = kTileVecs * V::kWidth;
    if (params_->bias_kind == BiasKind::kNone) {
      apply_as<kVecs, false, true>(s, stride, bias, kBiasStride, limits, block + j, count, max);
    } else if (limited) {
      apply_as<kVecs, true, true>(s, stride, bias, kBiasStride, limits, block + j, count, max);
    } else {
      apply_as<kVecs, true, false>(s, stride, bias, kBiasStride, limits, block + j, count, max);
    }
  }

  /// Whether the query of `lane` may not attend `key`.
  bool excludes(int64_t lane, int64_t key) const {
    if (key >= limit_[lane]) return true;
    const int64_t at =
        bias_offset_ + lane * params_->bias_strides[2] + key * params_->bias_strides[3];
    switch (params_->bias_kind) {
      case BiasKind::kAdditive:
        return static_cast<const T*>(params_->bias)[at] == -kInf;
      case BiasKind::kBoolean:
        return !static_cast<const bool*>(params_->bias)[at];
      case BiasKind::kNone:
        break;
    }
    return false;
  }

  bool has_dropout() const { return params_->dropout > 0; }

  /// Zeroes the dropped ones of the weights p[key][lane].
  template <int kVecs>
  void drop(T* p, int64_t stride, int64_t key, int64_t count) const {
    for_dropout_rows<kVecs>(key, count, [&](int64_t j, const uint32_t* word) {
      T* row = p + j * stride;
      for (int i = 0; i < kVecs * V::kWidth; ++i)
        row[i] = word[i] >= dropout_threshold_ ? row[i] : T(0);
    });
  }

  /// Sets the sign of the dropped ones, so that one buffer holds both the weight and its fate.
  template <int kVecs>
  void mark_dropped(T* p, int64_t stride, int64_t key, int64_t count) const {
    for_dropout_rows<kVecs>(key, count, [&](int64_t j, const uint32_t* word) {
      T* row = p + j * stride;
      for (int i = 0; i < kVecs * V::kWidth; ++i)
        row[i] = word[i] >= dropout_threshold_ ? row[i] : -row[i];
    });
  }

 private:
  static constexpr T kInf = std::numeric_limits<T>::infinity();

  void set_limits(const ScoreParams& p, const Shape& shape, int64_t batch, int64_t head) {
    const bool causal = p.causal;
    int64_t largest = 0;
    int64_t smallest = shape.keys;
    int64_t limit = 0;
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int64_t query = first_ + lane;
      limit = shape.keys;
      if (causal) {
        const int64_t position =
            p.positions == nullptr
                ? query + shape.keys - shape.queries
                : p.positions[batch * p.position_strides[0] + head * p.position_strides[1] +
                              query * p.position_strides[2]];
        limit = position < 0 ? 0 : position >= shape.keys ? shape.keys : position + 1;
      }
      limit_[lane] = limit;
      largest = max_of(largest, limit);
      smallest = min_of(smallest, limit);
    }
    // Padding does what the last query does, so that it never asks for work of its own.
    for (int64_t lane = count_; lane < kMaxLanes; ++lane) limit_[lane] = limit;
    for (int v = 0; v < V::kScoreVecs; ++v) {
      vector_end_[v] = 0;
      for (int i = 0; i < V::kWidth; ++i) {
        vector_end_[v] = max_of(vector_end_[v], limit_[v * V::kWidth + i]);
      }
    }
    key_end_ = largest;
    full_end_ = smallest;
  }

  // bias_tile[key][lane] = bias of the lane's query, with 0 and -inf for True and False.
  template <int kVecs>
  void load_bias(int64_t key, int64_t count) {
    constexpr int kLanes = kVecs * V::kWidth;
    const int64_t row = params_->bias_strides[2];
    const int64_t column = params_->bias_strides[3];
    const int64_t offset = bias_offset_ + key * column;
    if (params_->bias_kind == BiasKind::kBoolean) {
      const bool* mask = static_cast<const bool*>(params_->bias) + offset;
      // A few keys of all queries at once: rows of the mask become rows of numbers, and those columns.
      constexpr int64_t kKeys = V::kWidth;
      for (int64_t j = 0; j < count; j += kKeys) {
        alignas(64) T rows[kLanes * kKeys];
        const int64_t width = min_of(kKeys, count - j);
        for (int64_t i = 0; i < count_; ++i) {
          const bool* from = mask + i * row + j * column;
          T* to = rows + i * kKeys;
          if (width == kKeys && column == 1) {
            V::store(to, V::if_set(from, V::zero(), V::broadcast(-kInf)));
          } else {
            for (int64_t k = 0; k < width; ++k) to[k] = from[k * column] ? T(0) : -kInf;
          }
        }
        pack_transposed<V, kLanes>(rows, kKeys, count_, width, T(1), bias_tile_ + j * kLanes);
      }
    } else if (column == 1) {
      pack_transposed<V, kLanes>(static_cast<const T*>(params_->bias) + offset, row, count_, count,
                                 T(1), bias_tile_);
    } else {
      const T* bias = static_cast<const T*>(params_->bias) + offset;
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t i = 0; i < kLanes; ++i) {
          bias_tile_[j * kLanes + i] = i < count_ ? bias[i * row + j * column] : T(0);
        }
      }
    }
  }

  template <int kVecs, bool kBias, bool kLimit>
  static void apply_as(T* s, int64_t stride, const T* bias, int64_t bias_stride,
                       const int64_t* limits, int64_t key, int64_t count, Reg* max) {
    constexpr int W = V::kWidth;
    const Reg minus_inf = V::broadcast(-kInf);
    // Limits counted from `key` are small integers, exact in T however long the sequence is.
    alignas(64) T relative[kVecs * W];
    for (int i = 0; i < kVecs * W; ++i) {
      relative[i] = static_cast<T>(min_of(max_of(limits[i] - key, 0), count));
    }
    Reg limit[kVecs], top[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      limit[v] = V::load(relative + v * W);
      top[v] = max[v];
    }
    for (int64_t j = 0; j < count; ++j) {
      const Reg position = V::broadcast(static_cast<T>(j));
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Reg x = V::load(s + j * stride + v * W);
        if constexpr (kBias) {
          const Reg b = V::load(bias + j * bias_stride + v * W);
          x = V::if_equal(b, minus_inf, minus_inf, V::add(x, b));
        }
        if constexpr (kLimit) x = V::if_less(position, limit[v], x, minus_inf);
        V::store(s + j * stride + v * W, x);
        top[v] = V::max(x, top[v]);
      }
    }
    for (int v = 0; v < kVecs; ++v) max[v] = top[v];
  }

  // Calls f(row, words of the row's key) with one random word per lane.
  template <int kVecs, class F>
  void for_dropout_rows(int64_t key, int64_t count, F&& f) const {
    constexpr int kLanes = kVecs * V::kWidth;
    for (int64_t group = key / 4; group * 4 < key + count; ++group) {
      alignas(64) uint32_t word[4][kLanes];
      dropout_words<typename V::Counters, kLanes>(dropout_key_, batch_head_, first_, group, word);
      for (int64_t r = 0; r < 4; ++r) {
        const int64_t j = group * 4 + r - key;
        if (j >= 0 && j < count) f(j, word[r]);
      }
    }
  }

  const ScoreParams* params_;
  int64_t batch_head_, first_, count_, keys_;
  int64_t key_end_, full_end_;
  int64_t bias_offset_;
  T* bias_tile_;
  PhiloxKey dropout_key_;
  uint32_t dropout_threshold_;
  int64_t limit_[kMaxLanes];
  int64_t vector_end_[V::kScoreVecs];  // the largest limit of a vector of lanes
};

}  // namespace
}  // namespace flash
