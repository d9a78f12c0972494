#pragma once
// All operations on scores between Q K^T and the softmax, and on weights after it: softcap, ALiBi,
// bias, boolean mask, window, dropout.
//
// To add an option, add its fields to ScoreParams and its arithmetic to `apply`. If it can mask a
// key, extend `mark_masked` and `attends_any`; if it can mask whole ranges of keys, extend
// KeyRanges. The tile loops do not change.

#include <cstdint>
#include <limits>

#include "csrc/generic/key_ranges.h"
#include "csrc/generic/product.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tanh.h"
#include "csrc/params.h"
#include "csrc/philox.h"

namespace flash {
namespace {

/// Whether any (query, key) pair may be masked.
inline bool can_mask(const ScoreParams& p) {
  return p.window_left >= 0 || p.window_right >= 0 || p.bias_kind != BiasKind::kNone;
}

/// Whether softcap, ALiBi or a bias changes the scores.
inline bool changes_scores(const ScoreParams& p) {
  return p.softcap > 0 || p.alibi_slopes != nullptr || p.bias_kind != BiasKind::kNone;
}

/// The score stage of one tile. Lane i is query `first + i` of one (batch, head), i < count; lanes
/// from `count` on are padding.
template <class V>
class ScoreStage {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;

  void start(const ScoreParams& p, const Shape& shape, int64_t batch, int64_t head, int64_t first,
             int64_t count, T* bias_tile) {
    params_ = &p;
    const Origin& origin = p.dropout_origin;
    dropout_head_ =
        (origin.batch + batch) * (shape.heads + origin.other_heads) + origin.head + head;
    first_ = first;
    count_ = count;
    bias_tile_ = bias_tile;
    bias_offset_ = batch * p.bias_strides[0] + head * p.bias_strides[1] + first * p.bias_strides[2];
    dropout_key_ = philox_key(p.dropout_seed);
    dropout_threshold_ = dropout_threshold(p.dropout);
    slope_ = p.alibi_slopes == nullptr
                 ? T(0)
                 : static_cast<const T*>(
                       p.alibi_slopes)[batch * p.slope_strides[0] + head * p.slope_strides[1]];
    sink_ =
        p.sinks == nullptr
            ? -kInf
            : static_cast<const T*>(p.sinks)[batch * p.sink_strides[0] + head * p.sink_strides[1]];
    ranges_.start(p, shape, batch, head, first, count);
  }

  const KeyRanges<V>& ranges() const { return ranges_; }

  /// The score of the sink; -inf if there is none.
  T sink() const { return sink_; }

  /// Loads the bias of keys [key, key + count), for `apply` and `mark_masked`.
  template <int kVecs>
  void start_block(int64_t key, int64_t count) {
    if (params_->bias_kind != BiasKind::kNone) load_bias<kVecs>(key, count);
  }

  /// Turns raw scores s[key][lane] of one segment, kVecs of the kTileVecs vectors of the tile, into
  /// final scores, with -inf for masked ones, and raises `max` to the largest score of each lane.
  /// `block` is the `key` that was passed to `start_block`; the segment starts at key block + j. If
  /// scores are capped and `cap_derivative` is not null, it receives the derivative of each capped
  /// score with respect to the raw score, in the layout of s.
  template <int kTileVecs, int kVecs>
  void apply(T* s, int64_t stride, int64_t block, int64_t j, int64_t count, bool limited, Reg* max,
             T* cap_derivative = nullptr) const {
    constexpr int kDead = kTileVecs - kVecs;
    const T* bias = bias_tile_ + (j * kTileVecs + kDead) * V::kWidth;
    constexpr int64_t kBiasStride = kTileVecs * V::kWidth;
    const bool has_bias = params_->bias_kind != BiasKind::kNone;
    if (params_->softcap > 0) cap<kVecs>(s, stride, count, cap_derivative);
    if (params_->alibi_slopes != nullptr) {
      add_alibi<kVecs>(s, stride, ranges_.positions() + kDead * V::kWidth, block + j, count);
    }
    const int64_t* starts = ranges_.starts() + kDead * V::kWidth;
    const int64_t* limits = ranges_.limits() + kDead * V::kWidth;
    const auto run = [&]<bool kBias, bool kLimit>() {
      apply_as<kVecs, kBias, kLimit>(s, stride, bias, kBiasStride, starts, limits, block + j, count,
                                     max);
    };
    if (!has_bias) {
      limited ? run.template operator()<false, true>() : run.template operator()<false, false>();
    } else {
      limited ? run.template operator()<true, true>() : run.template operator()<true, false>();
    }
  }

  /// Adds the gradient of the ALiBi slope of each lane to rows[lane].
  template <int kVecs>
  [[gnu::noinline]] void add_slope_gradients(const T* grad_scores, int64_t stride, int64_t key,
                                             int64_t count, T* rows) const {
    alignas(64) T lanes[kVecs * V::kWidth];
    relative_positions<kVecs>(ranges_.positions(), key, lanes);
    Reg position[kVecs], sum[kVecs];
    each<kVecs>([&](int v) {
      position[v] = V::load(lanes + v * V::kWidth);
      sum[v] = V::zero();
    });
    for (int64_t j = 0; j < count; ++j) {
      const Reg at = V::broadcast(static_cast<T>(j));
      each<kVecs>([&](int v) {
        const Reg grad = V::load(grad_scores + j * stride + v * V::kWidth);
        sum[v] = V::fma(grad, V::abs(V::sub(position[v], at)), sum[v]);
      });
    }
    each<kVecs>([&](int v) { V::store(lanes + v * V::kWidth, sum[v]); });
    for (int64_t i = 0; i < count_; ++i) rows[i] -= lanes[i];
  }

  /// Whether the query of `lane` attends at least one key.
  bool attends_any(int64_t lane) const {
    const int64_t begin = ranges_.starts()[lane], end = ranges_.limits()[lane];
    if (params_->bias_kind == BiasKind::kNone) return begin < end;
    constexpr int64_t kChunk = 64;  // branch-free inside, so that the loop is vectorized
    for (int64_t key = begin; key < end; key += kChunk) {
      if (attends_some(lane, key, min_of(kChunk, end - key))) return true;
    }
    return false;
  }

  /// The keys of [key, key + count) that every query of the tile attends, relative to `key`. Empty
  /// if there is a bias.
  Range unmasked_keys(int64_t key, int64_t count) const {
    if (params_->bias_kind != BiasKind::kNone) return {count, count};
    return ranges_.unlimited_keys(key, count);
  }
  bool is_unmasked(int64_t key, int64_t count) const {
    const Range keys = unmasked_keys(key, count);
    return keys.begin == 0 && keys.end == count;
  }

  /// Sets masked elements of x[key][lane] to -0 and other zeros to +0, for Factors::kUnmasked. The
  /// keys must be those of the last `start_block`.
  template <int kVecs>
  [[gnu::noinline]] void mark_masked(T* x, int64_t stride, int64_t key, int64_t count) const {
    constexpr int W = V::kWidth;
    const bool has_bias = params_->bias_kind != BiasKind::kNone;
    const Reg minus_zero = V::broadcast(-T(0)), minus_inf = V::broadcast(-kInf);
    const LaneLimits<V, kVecs> lanes(ranges_.starts(), ranges_.limits(), key, count);
    for (int64_t j = 0; j < count; ++j, x += stride) {
      for (int v = 0; v < kVecs; ++v) {
        Reg y = V::add(V::load(x + v * W), V::zero());
        if (has_bias) {
          const Reg bias = V::load(bias_tile_ + (j * kVecs + v) * W);
          y = V::if_equal(bias, minus_inf, minus_zero, y);
        }
        V::store(x + v * W, lanes.select(j, v, y, minus_zero));
      }
    }
  }

  bool has_dropout() const { return params_->dropout > 0; }

  /// Sets dropped weights p[key][lane] to 0.
  template <int kVecs>
  void drop(T* p, int64_t stride, int64_t key, int64_t count) const {
    for_dropout_rows<kVecs>(key, count, [&](int64_t j, const uint32_t* word) {
      T* row = p + j * stride;
      for (int i = 0; i < kVecs * V::kWidth; ++i)
        row[i] = word[i] >= dropout_threshold_ ? row[i] : T(0);
    });
  }

  /// Negates dropped weights, so that one buffer holds both the weights and the dropout mask.
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

  // Whether the bias leaves any of `count` keys unmasked for the query of `lane`.
  bool attends_some(int64_t lane, int64_t key, int64_t count) const {
    const int64_t column = params_->bias_strides[3];
    const int64_t at = bias_offset_ + lane * params_->bias_strides[2] + key * column;
    const auto any = [&](int64_t step, auto&& attends) {
      bool found = false;
      for (int64_t k = 0; k < count; ++k) found |= attends(at + k * step);
      return found;
    };
    const auto look = [&](auto&& attends) {
      return column == 1 ? any(1, attends) : any(column, attends);
    };
    if (params_->bias_kind == BiasKind::kBoolean) {
      return look([mask = static_cast<const bool*>(params_->bias)](int64_t i) { return mask[i]; });
    }
    if (params_->bias_storage == Storage::kNative) {
      return look(
          [bias = static_cast<const T*>(params_->bias)](int64_t i) { return bias[i] != -kInf; });
    }
    return look([&](int64_t i) {
      return stored_element<T>(params_->bias, i, params_->bias_storage) != -kInf;
    });
  }

  // bias_tile[key][lane] = the bias; for a boolean mask, 0 for True and -inf for False.
  template <int kVecs>
  void load_bias(int64_t key, int64_t count) {
    constexpr int kLanes = kVecs * V::kWidth;
    const int64_t row = params_->bias_strides[2];
    const int64_t column = params_->bias_strides[3];
    const int64_t offset = bias_offset_ + key * column;
    if (params_->bias_kind == BiasKind::kBoolean) {
      const bool* mask = static_cast<const bool*>(params_->bias) + offset;
      load_bias_rows<kVecs>(count, [&](int64_t i, int64_t j, int64_t width, T* to) {
        const bool* from = mask + i * row + j * column;
        if (width == V::kWidth && column == 1) {
          V::store(to, V::if_set(from, V::zero(), V::broadcast(-kInf)));
        } else {
          for (int64_t k = 0; k < width; ++k) to[k] = from[k * column] ? T(0) : -kInf;
        }
      });
    } else if (params_->bias_storage != Storage::kNative) {
      load_bias_rows<kVecs>(count, [&](int64_t i, int64_t j, int64_t width, T* to) {
        const int64_t from = offset + i * row + j * column;
        if (column == 1) {
          load_16_bit<V>(params_->bias, from, width, params_->bias_storage, to);
        } else {
          for (int64_t k = 0; k < width; ++k) {
            to[k] = stored_element<T>(params_->bias, from + k * column, params_->bias_storage);
          }
        }
      });
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

  // Calls read(query, key, keys, to), which writes part of a bias row to `to`, for V::kWidth keys
  // of every query at a time, and transposes the result into bias_tile.
  template <int kVecs, class Read>
  void load_bias_rows(int64_t count, Read&& read) {
    constexpr int kLanes = kVecs * V::kWidth;
    constexpr int64_t kKeys = V::kWidth;
    for (int64_t j = 0; j < count; j += kKeys) {
      alignas(64) T rows[kLanes * kKeys];
      const int64_t width = min_of(kKeys, count - j);
      for (int64_t i = 0; i < count_; ++i) read(i, j, width, rows + i * kKeys);
      pack_transposed<V, kLanes>(rows, kKeys, count_, width, T(1), bias_tile_ + j * kLanes);
    }
  }

  // Positions relative to `key`: small integers, and so exact, wherever ALiBi leaves a weight that
  // matters.
  template <int kVecs>
  static void relative_positions(const int64_t* position, int64_t key, T* out) {
    for (int i = 0; i < kVecs * V::kWidth; ++i) {
      out[i] = static_cast<T>(saturated_sum(position[i], -key));
    }
  }

  // Replaces s by c tanh(s / c) and, unless `slope` is null, writes 1 - tanh^2 to it. A score whose
  // quotient equals its own tanh is left unchanged: with a very large cap, the quotient is
  // denormal.
  template <int kVecs>
  [[gnu::noinline]] void cap(T* s, int64_t stride, int64_t count, T* slope) const {
    constexpr double kLargest = std::numeric_limits<T>::max();
    const double quotient = 1 / params_->softcap;
    const Reg c = V::broadcast(static_cast<T>(params_->softcap));
    const Reg inverse = V::broadcast(static_cast<T>(quotient < kLargest ? quotient : kLargest));
    const Reg one = V::broadcast(T(1));
    const Reg linear = V::broadcast(sizeof(T) == 4 ? T(0x1p-13) : T(0x1p-27));
    for (int64_t j = 0; j < count; ++j) {
      Reg x[kVecs], score[kVecs];
      each<kVecs>([&](int v) {
        score[v] = V::load(s + j * stride + v * V::kWidth);
        x[v] = V::mul(score[v], inverse);
      });
      tanh<V>(x);
      each<kVecs>([&](int v) {
        const Reg capped = V::if_less(V::abs(x[v]), linear, score[v], V::mul(c, x[v]));
        V::store(s + j * stride + v * V::kWidth, capped);
      });
      if (slope == nullptr) continue;
      each<kVecs>([&](int v) {
        V::store(slope + j * stride + v * V::kWidth, V::sub(one, V::mul(x[v], x[v])));
      });
    }
  }

  template <int kVecs>
  [[gnu::noinline]] void add_alibi(T* s, int64_t stride, const int64_t* position, int64_t key,
                                   int64_t count) const {
    alignas(64) T relative[kVecs * V::kWidth];
    relative_positions<kVecs>(position, key, relative);
    const Reg slope = V::broadcast(-slope_);
    for (int64_t j = 0; j < count; ++j) {
      const Reg at = V::broadcast(static_cast<T>(j));
      each<kVecs>([&](int v) {
        T* score = s + j * stride + v * V::kWidth;
        const Reg far = V::abs(V::sub(V::load(relative + v * V::kWidth), at));
        V::store(score, V::fma(slope, far, V::load(score)));
      });
    }
  }

  template <int kVecs, bool kBias, bool kLimit>
  static void apply_as(T* s, int64_t stride, const T* bias, int64_t bias_stride,
                       const int64_t* starts, const int64_t* limits, int64_t key, int64_t count,
                       Reg* max) {
    constexpr int W = V::kWidth;
    const Reg minus_inf = V::broadcast(-kInf);
    const LaneLimits<V, kVecs> lanes(starts, limits, key, count);
    Reg top[kVecs];
    for (int v = 0; v < kVecs; ++v) top[v] = max[v];
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Reg x = V::load(s + j * stride + v * W);
        if constexpr (kBias) {
          const Reg b = V::load(bias + j * bias_stride + v * W);
          x = V::if_equal(b, minus_inf, minus_inf, V::add(x, b));
        }
        if constexpr (kLimit) x = lanes.select(j, v, x, minus_inf);
        V::store(s + j * stride + v * W, x);
        top[v] = V::max(x, top[v]);
      }
    }
    for (int v = 0; v < kVecs; ++v) max[v] = top[v];
  }

  // Calls f(row, words) for every key, with one random word per lane.
  template <int kVecs, class F>
  void for_dropout_rows(int64_t key, int64_t count, F&& f) const {
    constexpr int kLanes = kVecs * V::kWidth;
    const Origin& origin = params_->dropout_origin;
    const int64_t first = origin.query + first_, begin = origin.key + key;
    for (int64_t group = begin / 4; group * 4 < begin + count; ++group) {
      alignas(64) uint32_t word[4][kLanes];
      dropout_words<typename V::Counters, kLanes>(dropout_key_, dropout_head_, first, group, word);
      for (int64_t r = 0; r < 4; ++r) {
        const int64_t j = group * 4 + r - begin;
        if (j >= 0 && j < count) f(j, word[r]);
      }
    }
  }

  const ScoreParams* params_;
  KeyRanges<V> ranges_;
  int64_t dropout_head_;  // (batch, head) in the counter of the dropout mask
  int64_t first_, count_;
  int64_t bias_offset_;
  T* bias_tile_;
  PhiloxKey dropout_key_;
  uint32_t dropout_threshold_;
  T slope_, sink_;
};

}  // namespace
}  // namespace flash
