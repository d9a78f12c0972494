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
    return params_->bias_kind == BiasKind::kNone && key + count <= full_end_;
  }

  /// Turns raw scores s[key][lane] into final ones: -inf where a query may not attend.
  /// `max` is raised to the largest score of each lane.
  template <int kVecs>
  void apply(T* s, int64_t stride, int64_t key, int64_t count, Reg (&max)[kVecs]) {
    const bool limited = key + count > full_end_;
    if (params_->bias_kind == BiasKind::kNone) {
      apply_as<kVecs, false, true>(s, stride, key, count, max);
    } else {
      load_bias<kVecs>(key, count);
      if (limited) {
        apply_as<kVecs, true, true>(s, stride, key, count, max);
      } else {
        apply_as<kVecs, true, false>(s, stride, key, count, max);
      }
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
    for (int64_t lane = 0; lane < count_; ++lane) {
      const int64_t query = first_ + lane;
      int64_t limit = shape.keys;
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
    for (int64_t lane = count_; lane < kMaxLanes; ++lane) limit_[lane] = largest;
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
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t i = 0; i < kLanes; ++i) {
          bias_tile_[j * kLanes + i] = i >= count_ || mask[i * row + j * column] ? T(0) : -kInf;
        }
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
  void apply_as(T* s, int64_t stride, int64_t key, int64_t count, Reg (&max)[kVecs]) const {
    constexpr int W = V::kWidth;
    const Reg minus_inf = V::broadcast(-kInf);
    // Limits counted from `key` are small integers, exact in T however long the sequence is.
    alignas(64) T relative[kVecs * W];
    for (int i = 0; i < kVecs * W; ++i) {
      relative[i] = static_cast<T>(min_of(max_of(limit_[i] - key, 0), count));
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
          const Reg bias = V::load(bias_tile_ + (j * kVecs + v) * W);
          x = V::if_equal(bias, minus_inf, minus_inf, V::add(x, bias));
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
      dropout_words<kLanes>(dropout_key_, batch_head_, first_, group, word);
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
};

}  // namespace
}  // namespace flash
