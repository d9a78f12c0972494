#pragma once
// Forward of few queries over any number of keys, as in decoding: a step of a language model has one
// query, and takes as long as it takes to read the keys and values from memory, if nothing else is in
// the way. Lanes are keys here, since lanes of queries would be idle; keys and values are read once, in
// the order of memory, a few rows ahead of which the prefetchers of a CPU then are.

#include <cstdint>
#include <limits>

#include "csrc/generic/exp.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

template <class V>
class FewQueries {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;
  /// Keys per step: so few that a step's keys are near when its values have been read.
  static constexpr int kKeys = 64;
  static constexpr int kVecs = kKeys / W;
  static constexpr int kColumnVecs = 8;

  /// A dot product for each score costs less than a tile of lanes of which half are idle. Without
  /// dropout, whose random words come for lanes of queries. A few keys are no work either way: they
  /// get sums in the order of the backward, so that the weight of an only key is 1 there, too.
  static bool fits(const ForwardParams& p) {
    return W > 1 && p.shape.queries <= W / 2 && p.shape.keys >= kKeys && p.score.dropout == 0 &&
           p.shape.head_dim <= V::kLongestChain * W;
  }

  static int64_t scratch_bytes(const ForwardParams& p) {
    return FewQueries(p, nullptr).bytes_;
  }

  FewQueries(const ForwardParams& p, void* memory) : p_(p), count_(p.shape.queries) {
    const Shape& shape = p.shape;
    const bool widens = p.storage != Storage::kNative;
    weights_ = static_cast<T*>(memory);
    scores_ = weights_ + W * kKeys;
    bias_ = scores_ + kKeys * W;
    sums_ = bias_ + kKeys * W;
    max_ = sums_ + count_ * W;
    rescale_ = max_ + count_;
    queries_ = rescale_ + count_;
    keys_ = queries_ + count_ * shape.head_dim;
    values_ = keys_ + (widens ? kKeys * shape.head_dim : 0);
    outs_ = values_ + (widens ? kKeys * shape.value_dim : 0);
    const T* end = outs_ + (narrows() ? count_ * shape.value_dim : 0);
    bytes_ = (end - weights_) * static_cast<int64_t>(sizeof(T));
  }

  /// All queries of one (batch, head).
  void run(int64_t batch, int64_t head) {
    start(batch, head);
    const KeyRanges<V>& ranges = stage_.ranges();
    for (int64_t key = ranges.key_begin(); key < ranges.key_end(); key += kKeys) {
      step(key, min_of(kKeys, ranges.key_end() - key), key > ranges.key_begin());
    }
    finish();
  }

  /// Of the last (batch, head): as those of a ForwardTile.
  bool is_suspect(int64_t i) const {
    return sum_of(i) == 0 || (can_exclude(p_.score) &&
                              has_nan<V>(out_ + i * out_stride_, 0, 1, p_.shape.value_dim));
  }

 private:
  bool narrows() const { return p_.out_storage != Storage::kNative; }
  T sum_of(int64_t i) const { return static_cast<const T*>(p_.row_sum)[row_ + i]; }

  void start(int64_t batch, int64_t head) {
    const Shape& shape = p_.shape;
    batch_ = batch;
    key_head_ = head / (shape.heads / shape.key_heads);
    value_head_ = head / (shape.heads / shape.value_heads);
    row_ = (batch * shape.heads + head) * shape.queries;
    first_out_ = row_offset(p_.out, batch, head, 0);
    out_ = narrows() ? outs_ : static_cast<T*>(p_.out.data) + first_out_;
    out_stride_ = narrows() ? shape.value_dim : p_.out.strides.row;
    const T scale = static_cast<T>(p_.score.scale);
    const RowView<T> rows = read_rows<V>(p_.query, p_.storage, batch, head, 0, count_,
                                         shape.head_dim, queries_);
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t c = 0; c < shape.head_dim; ++c) {
        queries_[i * shape.head_dim + c] = scale * rows.at(i)[c];
      }
    }
    stage_.start(p_.score, shape, batch, head, 0, count_, bias_);
    // As if the sink, with weight e^0, had been the first key.
    const bool has_sink = !(stage_.sink() == -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < count_; ++i) {
      max_[i] = stage_.sink();
      for (int lane = 0; lane < W; ++lane) sums_[i * W + lane] = T(has_sink && lane == 0 ? 1 : 0);
    }
  }

  void step(int64_t key, int64_t keys, bool accumulate) {
    const Shape& shape = p_.shape;
    const RowView<T> key_rows = read_rows<V>(p_.key, p_.storage, batch_, key_head_, key, keys,
                                             shape.head_dim, keys_);
    // Further queries find the rows in the first-level cache.
    Ahead ahead(p_, p_.key, shape.head_dim);
    for (int64_t i = 0; i < count_; ++i, ahead.stop()) {
      const T* query = queries_ + i * shape.head_dim;
      for (int64_t j = 0; j < keys; j += W) {
        V::store(weights_ + i * kKeys + j,
                 row_products(query, {key_rows.at(j), key_rows.stride}, min_of(W, keys - j), ahead));
      }
    }
    const bool limited = !stage_.ranges().is_unlimited(key, keys);
    if (limited || changes_scores(p_.score)) apply_options(key, keys, limited);
    for (int64_t i = 0; i < count_; ++i) weigh(i, keys);
    const RowView<T> value_rows = read_rows<V>(p_.value, p_.storage, batch_, value_head_, key, keys,
                                               shape.value_dim, values_);
    ahead = Ahead(p_, p_.value, shape.value_dim);
    for (int64_t i = 0; i < count_; ++i, ahead.stop()) {
      const T rescale = accumulate ? rescale_[i] : T(0);
      for (int64_t c = 0; c < shape.value_dim; c += kColumnVecs * W, ahead.stop()) {
        const int64_t columns = min_of(kColumnVecs * W, shape.value_dim - c);
        with_vecs<kColumnVecs>(static_cast<int>(ceil_div(columns, W)), [&]<int kColumns>() {
          add_values<kColumns>(weights_ + i * kKeys, keys, {value_rows.data + c, value_rows.stride},
                               columns, accumulate, rescale, out_ + i * out_stride_ + c, ahead);
        });
      }
    }
  }

  // Asks for the row that lies kBytes further on than one that is read, a row at a time. The
  // prefetchers of a CPU lose sight of keys while values are read, and of values while keys are.
  class Ahead {
   public:
    Ahead(const ForwardParams& p, const ConstRows& rows, int64_t columns) {
      if (p.storage != Storage::kNative || columns == 0) return;  // read_rows has been there
      constexpr int64_t kBytes = 8192;
      const auto size = static_cast<int64_t>(sizeof(T));
      bytes_ = columns * size;
      distance_ = ceil_div(kBytes, bytes_) * rows.strides.row * size;
    }
    void stop() { bytes_ = 0; }
    void of(const T* row) const {
      constexpr int64_t kLine = 64;
      // The address may be past the end of everything, and is no pointer.
      const auto address = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(distance_);
      for (int64_t at = 0; at < bytes_; at += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(at)), 0, 2);
      }
    }

   private:
    int64_t bytes_ = 0, distance_ = 0;
  };

  // The dot products of a query with each of W rows, of which `count` exist; the others give anything.
  Reg row_products(const T* query, RowView<T> rows, int64_t count, const Ahead& ahead) const {
    const int64_t columns = p_.shape.head_dim;
    const typename V::Mask tail = V::first(columns % W);
    Reg sum[W];
    // In the order of memory, which is twice as fast from afar as column by column.
    const T* row = rows.data;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      ahead.of(row);
      sum[i] = V::zero();
      int64_t c = 0;
      for (; c + W <= columns; c += W) sum[i] = V::fma(V::load(query + c), V::load(row + c), sum[i]);
      if (c < columns) sum[i] = V::fma(V::load(query + c, tail), V::load(row + c, tail), sum[i]);
      row += i + 1 < count ? rows.stride : 0;
    }
    V::transpose(sum);
#pragma GCC unroll 8
    for (int half = W / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < half; ++i) sum[i] = V::add(sum[i], sum[i + half]);
    }
    return sum[0];
  }

  // out = rescale * out + sum over j of weights[j] * rows[j], in kColumns vectors.
  template <int kColumns>
  void add_values(const T* weights, int64_t count, RowView<T> rows, int64_t columns, bool accumulate,
                  T rescale, T* out, const Ahead& ahead) const {
    const typename V::Mask last = V::first(columns - (kColumns - 1) * W);
    const auto load = [&](const T* row, int v) {
      return v == kColumns - 1 ? V::load(row + v * W, last) : V::load(row + v * W);
    };
    Reg sum[kColumns];
    each<kColumns>([&](int v) { sum[v] = V::zero(); });
    for (int64_t j = 0; j < count; ++j) {
      const T* row = rows.at(j);
      ahead.of(row);
      const Reg weight = V::broadcast(weights + j);
      each<kColumns>([&](int v) { sum[v] = V::fma(weight, load(row, v), sum[v]); });
    }
    if (accumulate) {
      const Reg factor = V::broadcast(rescale);
      each<kColumns>([&](int v) { sum[v] = V::fma(factor, load(out, v), sum[v]); });
    }
    each<kColumns>([&](int v) {
      v == kColumns - 1 ? V::store(out + v * W, sum[v], last) : V::store(out + v * W, sum[v]);
    });
  }

  // The stage has queries as its lanes: over to it and back.
  void apply_options(int64_t key, int64_t keys, bool limited) {
    pack_transposed<V, W>(weights_, kKeys, count_, keys, T(1), scores_);
    Reg unused[1] = {V::zero()};
    stage_.template start_block<1>(key, keys);
    stage_.template apply<1, 1>(scores_, W, key, 0, keys, limited, unused);
    pack_transposed<V, kKeys>(scores_, W, keys, count_, T(1), weights_);
  }

  // Scores of one query to weights, in place; 0 past `keys`.
  void weigh(int64_t i, int64_t keys) {
    constexpr T kMinusInf = -std::numeric_limits<T>::infinity();
    T* const row = weights_ + i * kKeys;
    for (int64_t j = keys; j < kKeys; ++j) row[j] = kMinusInf;
    Reg weight[kVecs];
    Reg top = V::broadcast(max_[i]);
    each<kVecs>([&](int v) {
      weight[v] = V::load(row + v * W);
      top = V::max(weight[v], top);
    });
    alignas(64) T lanes[W];
    V::store(lanes, top);
    T max = max_[i];
    for (int lane = 0; lane < W; ++lane) max = lanes[lane] > max ? lanes[lane] : max;
    // -inf - (-inf) is NaN: a row that has seen no key yet subtracts 0 instead.
    const T base = max == kMinusInf ? T(0) : max;
    Reg factor[1] = {V::broadcast(max_[i] - base)};
    exp<V>(factor);
    each<kVecs>([&](int v) { weight[v] = V::sub(weight[v], V::broadcast(base)); });
    exp<V>(weight);
    Reg sum = V::mul(V::load(sums_ + i * W), factor[0]);
    each<kVecs>([&](int v) {
      V::store(row + v * W, weight[v]);
      sum = V::add(sum, weight[v]);
    });
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
      const T factor = T(1) / sum;
      for (int64_t c = 0; c < columns; ++c) out[c] = attends ? out[c] * factor : T(0);
      if (narrows()) {
        narrow<V>(out, columns, p_.out_storage, p_.out.data, first_out_ + i * p_.out.strides.row);
      }
    }
  }

  const ForwardParams& p_;
  const int64_t count_;
  T* weights_;  // [W][kKeys], of which the first `count_` rows count
  T* scores_;   // [kKeys][W]
  T* bias_;     // [kKeys][W]
  T* sums_;     // [queries][W], of the keys of each lane
  T* max_;      // [queries]
  T* rescale_;  // [queries], what a larger score leaves of the rows of out
  T* queries_;  // [queries][D], scaled
  T* keys_;     // [kKeys][D], where stored in 16 bits
  T* values_;   // [kKeys][Dv], likewise
  T* outs_;     // [queries][Dv], likewise
  int64_t bytes_;

  int64_t batch_, key_head_, value_head_, row_, first_out_;
  T* out_;
  int64_t out_stride_;
  ScoreStage<V> stage_;
};

}  // namespace
}  // namespace flash
