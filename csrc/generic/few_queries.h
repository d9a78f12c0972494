#pragma once
// Forward of few queries over any number of keys, as in decoding: a step of a language model has
// one query, and takes as long as it takes to read the keys and values from memory, if nothing else
// is in the way. Lanes are keys here, since lanes of queries would be idle; keys and values are
// read once, in the order of memory, a few rows ahead of which the prefetchers of a CPU then are.

#include <cstddef>
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

  static int64_t scratch_bytes(const ForwardParams& p) { return FewQueries(p, nullptr).bytes_; }

  FewQueries(const ForwardParams& p, void* memory) : p_(p), count_(p.shape.queries) {
    const Shape& shape = p.shape;
    weights_ = static_cast<T*>(memory);
    scores_ = weights_ + W * kKeys;
    bias_ = scores_ + kKeys * W;
    sums_ = bias_ + kKeys * W;
    max_ = sums_ + count_ * W;
    rescale_ = max_ + count_;
    queries_ = rescale_ + count_;
    outs_ = queries_ + count_ * shape.head_dim;
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
    return sum_of(i) == 0 ||
           (can_exclude(p_.score) && has_nan<V>(out_ + i * out_stride_, 0, 1, p_.shape.value_dim));
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
    const RowView<T> rows =
        read_rows<V>(p_.query, p_.storage, batch, head, 0, count_, shape.head_dim, queries_);
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
    with_rows(p_.key, key_head_, key, [&](const auto* rows) { form_scores(rows, keys); });
    const bool limited = !stage_.ranges().is_unlimited(key, keys);
    if (limited || changes_scores(p_.score)) apply_options(key, keys, limited);
    for (int64_t i = 0; i < count_; ++i) weigh(i, keys);
    with_rows(p_.value, value_head_, key,
              [&](const auto* rows) { update_out(rows, keys, accumulate); });
  }

  // Calls f(row `row`) with the numbers as they are stored: they are widened in registers.
  template <class F>
  void with_rows(const ConstRows& rows, int64_t head, int64_t row, F&& f) const {
    const int64_t offset = row_offset(rows, batch_, head, row);
    with_stored<T>(rows.data, p_.storage, [&](const auto* p) { f(p + offset); });
  }

  template <class Stored>
  void form_scores(const Stored* rows, int64_t keys) {
    const int64_t stride = p_.key.strides.row;
    // Further queries find the rows in the first-level cache.
    Ahead ahead(stride * sizeof(Stored), p_.shape.head_dim * sizeof(Stored));
    for (int64_t i = 0; i < count_; ++i, ahead.stop()) {
      for (int64_t j = 0; j < keys; j += W) {
        V::store(weights_ + i * kKeys + j,
                 row_products(queries_ + i * p_.shape.head_dim, rows + j * stride, stride,
                              min_of(W, keys - j), ahead));
      }
    }
  }

  template <class Stored>
  void update_out(const Stored* rows, int64_t keys, bool accumulate) {
    const int64_t width = p_.shape.value_dim;
    Ahead ahead(p_.value.strides.row * sizeof(Stored), width * sizeof(Stored));
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t c = 0; c < width; c += kColumnVecs * W, ahead.stop()) {
        const int64_t columns = min_of(kColumnVecs * W, width - c);
        with_vecs<kColumnVecs>(static_cast<int>(ceil_div(columns, W)), [&]<int kColumns>() {
          add_values<kColumns>(weights_ + i * kKeys, rows + c, keys, columns,
                               accumulate ? rescale_ + i : nullptr, out_ + i * out_stride_ + c,
                               ahead);
        });
      }
    }
  }

  // Asks for the row that lies kBytes further on than one that is read, a row at a time. The
  // prefetchers of a CPU lose sight of keys while values are read, and of values while keys are.
  class Ahead {
   public:
    Ahead(size_t stride, size_t bytes)
        : bytes_(bytes), distance_(bytes == 0 ? 0 : (kBytes + bytes - 1) / bytes * stride) {}
    void stop() { bytes_ = 0; }
    void of(const void* row) const {
      // The address may be past the end of everything, and is no pointer.
      const uintptr_t address = reinterpret_cast<uintptr_t>(row) + distance_;
      for (size_t at = 0; at < bytes_; at += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(address + at), 0, 2);
      }
    }

   private:
    static constexpr size_t kBytes = 8192, kLine = 64;
    size_t bytes_, distance_;
  };

  // The dot products of a query with each of W rows, of which `count` exist; the others give
  // anything.
  template <class Stored>
  Reg row_products(const T* query, const Stored* row, int64_t stride, int64_t count,
                   const Ahead& ahead) const {
    const int64_t columns = p_.shape.head_dim, tail = columns % W;
    Reg sum[W];
    // In the order of memory, which is twice as fast from afar as column by column.
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      ahead.of(row);
      sum[i] = V::zero();
      int64_t c = 0;
      for (; c + W <= columns; c += W)
        sum[i] = V::fma(V::load(query + c), V::load(row + c), sum[i]);
      if (tail > 0)
        sum[i] = V::fma(load_first<V>(query + c, tail), load_first<V>(row + c, tail), sum[i]);
      row += i + 1 < count ? stride : 0;
    }
    return sums_across<V>(sum);
  }

  // out = rescale * out + sum over j of weights[j] * row j, in kColumns vectors; without `rescale`
  // the sum alone.
  template <int kColumns, class Stored>
  void add_values(const T* weights, const Stored* row, int64_t count, int64_t columns,
                  const T* rescale, T* out, const Ahead& ahead) const {
    const int64_t tail = columns - (kColumns - 1) * W;
    const bool whole = tail == W;
    const auto load = [&](const auto* p, int v) {
      return whole || v < kColumns - 1 ? V::load(p + v * W) : load_first<V>(p + v * W, tail);
    };
    Reg sum[kColumns];
    each<kColumns>([&](int v) { sum[v] = V::zero(); });
    for (int64_t j = 0; j < count; ++j, row += p_.value.strides.row) {
      ahead.of(row);
      const Reg weight = V::broadcast(weights + j);
      each<kColumns>([&](int v) { sum[v] = V::fma(weight, load(row, v), sum[v]); });
    }
    if (rescale != nullptr) {
      const Reg factor = V::broadcast(rescale);
      each<kColumns>([&](int v) { sum[v] = V::fma(factor, load(out, v), sum[v]); });
    }
    each<kColumns>([&](int v) {
      T* const to = out + v * W;
      whole || v < kColumns - 1 ? V::store(to, sum[v]) : store_first<V>(to, sum[v], tail);
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
  T* outs_;     // [queries][Dv], where stored in 16 bits
  int64_t bytes_;

  int64_t batch_, key_head_, value_head_, row_, first_out_;
  T* out_;
  int64_t out_stride_;
  ScoreStage<V> stage_;
};

}  // namespace
}  // namespace flash
