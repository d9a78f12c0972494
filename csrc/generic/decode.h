#pragma once
// The forward of decoding: one or a few queries against a long KV cache.
//
// The time to read keys and values from memory bounds the speed. They are therefore read once, in
// memory order, which hardware prefetchers recognize. Lanes are keys, because there are too few
// queries to fill the lanes.

#include <cstdint>
#include <limits>

#include "csrc/decode_choice.h"
#include "csrc/generic/decode_scores.h"
#include "csrc/generic/decode_values.h"
#include "csrc/generic/exp.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

template <class V>
class Decode {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;
  static constexpr int kKeys = kDecodeKeys;  // per step
  /// Keys per call of the score stage.
  static constexpr int kBlock = 64;
  static constexpr int kVecs = kBlock / W;
  /// Rows of values in a cache block: all queries and columns use it before the next is read. Each
  /// block has its own sum, which rounds less than one sum over all keys.
  static constexpr int kRows = 32;
  /// Vectors of an output row in one pass. Reading whole rows is up to twice as fast as reading
  /// them in two passes, which outweighs that AVX2 spills 2 of the 16 sums.
  static constexpr int kColumnVecs = 16;

  static bool fits(const ForwardParams& p) {
    return takes_decode_kernel(p, W, kBlock, V::kLongestChain * W);
  }

  static int64_t scratch_bytes(const ForwardParams& p) { return Decode(p, nullptr).bytes_; }

  Decode(const ForwardParams& p, void* memory) : p_(p), count_(p.shape.queries) {
    const Shape& shape = p.shape;
    weights_ = static_cast<T*>(memory);
    scores_ = weights_ + count_ * kKeys;
    bias_ = scores_ + kBlock * W;
    sums_ = bias_ + kBlock * W;
    max_ = sums_ + count_ * W;
    rescale_ = max_ + count_;
    queries_ = rescale_ + count_;
    outs_ = queries_ + count_ * shape.head_dim;
    const T* end = outs_ + (out_is_16_bit() ? count_ * shape.value_dim : 0);
    bytes_ = (end - weights_) * static_cast<int64_t>(sizeof(T));
  }

  /// Processes all queries of one (batch, head).
  void run(int64_t batch, int64_t head) {
    start(batch, head);
    const KeyRanges<V>& ranges = stage_.ranges();
    for (int64_t key = ranges.key_begin(); key < ranges.key_end(); key += kKeys) {
      step(key, min_of(kKeys, ranges.key_end() - key), key > ranges.key_begin());
    }
    finish();
  }

 private:
  bool out_is_16_bit() const { return p_.out_storage != Storage::kNative; }

  void start(int64_t batch, int64_t head) {
    const Shape& shape = p_.shape;
    batch_ = batch;
    key_head_ = head / (shape.heads / shape.key_heads);
    value_head_ = head / (shape.heads / shape.value_heads);
    row_ = (batch * shape.heads + head) * shape.queries;
    first_out_ = row_offset(p_.out, batch, head, 0);
    out_ = out_is_16_bit() ? outs_ : static_cast<T*>(p_.out.data) + first_out_;
    out_stride_ = out_is_16_bit() ? shape.value_dim : p_.out.strides.row;
    const T scale = static_cast<T>(p_.score.scale);
    with_rows(p_.query, head, 0, [&](const auto* rows) {
      for (int64_t i = 0; i < count_; ++i) {
        order_query<V>(rows + i * p_.query.strides.row, shape.head_dim, scale,
                       queries_ + i * shape.head_dim);
      }
    });
    stage_.start(p_.score, shape, batch, head, 0, count_, bias_);
    sums_are_finite_ = true;
    // The sink acts as a first key with weight e^0.
    const bool has_sink = !(stage_.sink() == -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < count_; ++i) {
      max_[i] = stage_.sink();
      for (int lane = 0; lane < W; ++lane) sums_[i * W + lane] = T(has_sink && lane == 0 ? 1 : 0);
    }
  }

  void step(int64_t key, int64_t keys, bool accumulate) {
    with_rows(p_.key, key_head_, key, [&](const auto* rows) { form_scores(rows, keys); });
    for (int64_t j = 0; j < keys; j += kBlock) {
      const int64_t count = min_of(kBlock, keys - j);
      const bool limited = !stage_.ranges().is_unlimited(key + j, count);
      if (limited || changes_scores(p_.score))
        apply_options(key + j, count, limited, weights(0, j));
    }
    for (int64_t i = 0; i < count_; ++i) {
      weigh(i, keys);
      rescale_out(i, accumulate);
    }
    with_rows(p_.value, value_head_, key, [&](const auto* rows) { update_out(rows, key, keys); });
  }

  // The weights of query i from key j of the step to the end of its block of keys.
  T* weights(int64_t i, int64_t j) const {
    return weights_ + (j / kBlock * count_ + i) * kBlock + j % kBlock;
  }

  // Calls f(pointer to row `row`) in the stored type; conversion happens in registers.
  template <class F>
  void with_rows(const ConstRows& rows, int64_t head, int64_t row, F&& f) const {
    const int64_t offset = row_offset(rows, batch_, head, row);
    with_stored<T>(rows.data, p_.storage, [&](const auto* p) { f(p + offset); });
  }

  template <class Stored>
  void form_scores(const Stored* rows, int64_t keys) const {
    const int64_t width = p_.shape.head_dim, stride = p_.key.strides.row;
    int64_t done = 0;
    with_whole_vecs<V>(width, [&]<int kVecs>() {
      constexpr int kStreams = streams_of(kVecs * W * static_cast<int64_t>(sizeof(Stored)));
      const int64_t length = keys / (kStreams * kBlock) * kBlock;
      // The scores of a single query are contiguous.
      const int64_t at_once = count_ == 1 ? length : kBlock;
      for (int64_t j = 0; j < length; j += at_once) {
        for (int64_t i = 0; i < count_; ++i) {
          ScoreStream<T, Stored> streams[kStreams];
          for (int64_t s = 0; s < kStreams; ++s) {
            const int64_t first = s * length + j;
            streams[s] = {rows + first * stride, weights(i, first)};
          }
          row_products<V, kVecs>(queries_ + i * width, streams, stride, at_once);
        }
      }
      done = kStreams * length;
    });
    for (int64_t j = done; j < keys; j += kBlock) {
      for (int64_t i = 0; i < count_; ++i) {
        row_products<V>(queries_ + i * width, rows + j * stride, stride, min_of(kBlock, keys - j),
                        width, weights(i, j));
      }
    }
  }

  void rescale_out(int64_t i, bool accumulate) {
    T* const out = out_ + i * out_stride_;
    for (int64_t c = 0; c < p_.shape.value_dim; ++c)
      out[c] = accumulate ? rescale_[i] * out[c] : T(0);
  }

  // Reads the rows in streams, kRows at a time.
  template <class Stored>
  void update_out(const Stored* rows, int64_t key, int64_t keys) {
    const int64_t bytes = p_.shape.value_dim * static_cast<int64_t>(sizeof(Stored));
    const int64_t of_stream = kRows / 2, piece = min_of(of_stream, rows_of_piece(bytes));
    const int64_t length = streams_of(bytes) == 2 ? keys / kRows * of_stream : 0;
    bool is_marked = false;  // whether the masked weights of the step have been marked
    for (int64_t j = 0; j < length; j += of_stream) {
      const bool is_unmasked =
          stage_.is_unmasked(key + j, of_stream) && stage_.is_unmasked(key + length + j, of_stream);
      add_rows(rows, {j, length + j, piece, kRows}, is_unmasked, key, keys, is_marked);
    }
    for (int64_t j = 2 * length; j < keys; j += kRows) {
      const int64_t count = min_of(kRows, keys - j);
      const bool is_unmasked = stage_.is_unmasked(key + j, count);
      add_rows(rows, {j, j, count, count}, is_unmasked, key, keys, is_marked);
    }
  }

  // Rows of values: `piece` from `first` on, as many from `second` on, the next ones of the former,
  // and so on, `count` in all. All are of one stream if the two are equal.
  struct RowBlock {
    int64_t first, second, piece, count;
  };

  // out += weights * values over a block of rows of the step of `keys` keys from `key`.
  template <class Stored>
  void add_rows(const Stored* rows, RowBlock block, bool is_unmasked, int64_t key, int64_t keys,
                bool& is_marked) {
    for (int64_t i = 0; i < count_; ++i) {
      for_columns<V, kColumnVecs>(p_.shape.value_dim, [&]<int kColumns>(int64_t c, int64_t n) {
        T* const out = out_ + i * out_stride_ + c;
        const int64_t stride = p_.value.strides.row;
        const ValueStream<T, Stored> first = {weights(i, block.first),
                                              rows + block.first * stride + c};
        const ValueStream<T, Stored> second = {weights(i, block.second),
                                               rows + block.second * stride + c};
        if (is_unmasked || sums_are_finite_) {
          const auto add = [&]<bool kWhole>() __attribute__((always_inline)) {
            return add_values<V, kColumns, kWhole>(first, second, stride, block.piece, block.count,
                                                   n, out, is_unmasked);
          };
          const bool added = n == W * kColumns ? add.template operator()<true>()
                                               : add.template operator()<false>();
          if (added) return;
          sums_are_finite_ = false;
        }
        for (int64_t j = is_marked ? keys : 0; j < keys; j += kBlock) {
          mark_masked(key + j, min_of(kBlock, keys - j), weights(0, j));
        }
        is_marked = true;
        if (block.first == block.second) {
          return add_unmasked_values<V>(first, stride, block.count, n, out);
        }
        add_unmasked_values<V>(first, stride, block.count / 2, n, out);
        add_unmasked_values<V>(second, stride, block.count / 2, n, out);
      });
    }
  }

  // Transposes a block into `scores_`, calls f(), and transposes the result back: the lanes of the
  // score stage are queries.
  template <class F>
  void through_stage(int64_t key, int64_t keys, T* block, F&& f) {
    pack_transposed<V, W>(block, kBlock, count_, keys, T(1), scores_);
    stage_.template start_block<1>(key, keys);
    f();
    pack_transposed<V, kBlock>(scores_, W, keys, count_, T(1), block);
  }

  void apply_options(int64_t key, int64_t keys, bool limited, T* scores) {
    through_stage(key, keys, scores, [&] {
      Reg unused[1] = {V::zero()};
      stage_.template apply<1, 1>(scores_, W, key, 0, keys, limited, unused);
    });
  }

  void mark_masked(int64_t key, int64_t keys, T* weights) {
    through_stage(key, keys, weights,
                  [&] { stage_.template mark_masked<1>(scores_, W, key, keys); });
  }

  // Turns scores of one query into weights, in place; 0 from `keys` to the end of the block.
  void weigh(int64_t i, int64_t keys) {
    constexpr T kMinusInf = -std::numeric_limits<T>::infinity();
    for (int64_t j = keys; j % kBlock != 0; ++j) *weights(i, j) = kMinusInf;
    Reg top = V::broadcast(max_[i]);
    for (int64_t j = 0; j < keys; j += kBlock) {
      const T* const block = weights(i, j);
      each<kVecs>([&](int v) { top = V::max(V::load(block + v * W), top); });
    }
    alignas(64) T lanes[W];
    V::store(lanes, top);
    T max = max_[i];
    for (int lane = 0; lane < W; ++lane) max = lanes[lane] > max ? lanes[lane] : max;
    // -inf - (-inf) is NaN, so a row without a key so far subtracts 0 instead.
    const T base = max == kMinusInf ? T(0) : max;
    Reg factor[1] = {V::broadcast(max_[i] - base)};
    exp<V>(factor);
    Reg sum = V::mul(V::load(sums_ + i * W), factor[0]);
    for (int64_t j = 0; j < keys; j += kBlock) {
      T* const block = weights(i, j);
      Reg weight[kVecs];
      each<kVecs>([&](int v) { weight[v] = V::sub(V::load(block + v * W), V::broadcast(base)); });
      exp<V>(weight);
      each<kVecs>([&](int v) {
        V::store(block + v * W, weight[v]);
        sum = V::add(sum, weight[v]);
      });
    }
    V::store(sums_ + i * W, sum);
    V::store(lanes, factor[0]);
    rescale_[i] = lanes[0];
    max_[i] = max;
  }

  void finish() {
    const int64_t columns = p_.shape.value_dim;
    const bool attends = stage_.ranges().key_begin() < stage_.ranges().key_end();
    for (int64_t i = 0; i < count_; ++i) {
      T sum = 0;
      for (int lane = 0; lane < W; ++lane) sum += sums_[i * W + lane];
      static_cast<T*>(p_.row_max)[row_ + i] = max_[i];
      static_cast<T*>(p_.row_sum)[row_ + i] = sum;
      T* const out = out_ + i * out_stride_;
      // See ForwardTile::finish_empty_row.
      const bool is_nan = sum == 0 && !p_.is_part && stage_.attends_any(i);
      if (is_nan) {
        sum = std::numeric_limits<T>::quiet_NaN();
        static_cast<T*>(p_.row_sum)[row_ + i] = sum;
      }
      const bool is_empty = !attends || sum == 0;
      const T factor = T(1) / sum;
      for (int64_t c = 0; c < columns; ++c) out[c] = is_empty ? T(0) : out[c] * factor;
      if (out_is_16_bit()) {
        store_16_bit<V>(out, columns, p_.out_storage, p_.out.data,
                        first_out_ + i * p_.out.strides.row);
      }
    }
  }

  const ForwardParams& p_;
  const int64_t count_;
  T* weights_;  // [kKeys / kBlock][queries][kBlock], initially scores
  T* scores_;   // [kBlock][W]
  T* bias_;     // [kBlock][W]
  T* sums_;     // [queries][W], one sum of weights per lane
  T* max_;      // [queries]
  T* rescale_;  // [queries], exp(old max - new max), multiplies the old output
  T* queries_;  // [queries][D], scaled
  T* outs_;     // [queries][Dv], if out is stored in a 16-bit type
  int64_t bytes_;

  int64_t batch_, key_head_, value_head_, row_, first_out_;
  T* out_;
  int64_t out_stride_;
  bool sums_are_finite_;  // whether every sum of this (batch, head) was finite so far
  ScoreStage<V> stage_;
};

}  // namespace
}  // namespace flash
