#pragma once
// Backward: the weights are computed again, block by block, from Q, K and the two numbers per row.
//
// Dao et al., "FlashAttention" (arXiv:2205.14135), appendix B.2 and algorithm 4:
//
//   P  = exp(S - row_max) / row_sum           delta = rowsum(dO o O) - dlse
//   dP = dO V^T                               dS = P o (dP - delta)
//   dV += P^T dO        dQ += scale dS K      dK += scale dS^T Q      dbias += dS
//
// A block is up to kBlockTiles tiles of queries against `block` keys. S^T and dP^T are formed tile
// by tile with queries as lanes; dQ, dK and dV are updated in place, in their natural layout.

#include <cstdint>
#include <limits>

#include "csrc/generic/backward_scratch.h"
#include "csrc/generic/bias_gradient.h"
#include "csrc/generic/exp.h"
#include "csrc/generic/partition.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

/// A block of queries of one (batch, head) against keys, into dQ, dK, dV and dbias.
template <class V>
class BackwardBlock {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  using Scratch = BackwardScratch<V>;

  BackwardBlock(const BackwardParams& p, const Scratch& scratch, int64_t batch, int64_t head,
                Range queries)
      : p_(p),
        scratch_(scratch),
        batch_(batch),
        head_(head),
        key_head_(head / (p.shape.heads / p.shape.key_heads)),
        value_head_(head / (p.shape.heads / p.shape.value_heads)),
        first_(queries.begin),
        count_(queries.end - queries.begin),
        tiles_(count_),
        scale_(static_cast<T>(p.score.scale)) {
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      with_vecs<V::kScoreVecs>(tiles_.vecs(t), [&]<int kVecs>() { prepare<kVecs>(t); });
      const ScoreStage<V>& stage = stages_[t];
      if (stage.ranges().key_begin() == stage.ranges().key_end()) continue;
      key_begin_ = min_of(key_begin_, stage.ranges().key_begin());
      key_end_ = max_of(key_end_, stage.ranges().key_end());
    }
  }

  /// Adds the share of keys [keys.begin, keys.end).
  void run(Range keys) {
    const int64_t end = min_of(keys.end, key_end_);
    for (int64_t key = max_of(keys.begin, key_begin_); key < end; key += scratch_.block) {
      step(key, min_of(scratch_.block, end - key));
    }
  }

 private:
  void step(int64_t key, int64_t keys) {
    read_keys(key, keys);
    keys_are_finite_ = is_unmasked(key, keys) || p_.grad_query.data == nullptr ||
                       all_finite<V>(key_rows_.data, key_rows_.stride, keys, p_.shape.head_dim);
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      with_vecs<V::kScoreVecs>(tiles_.vecs(t),
                               [&]<int kVecs>() { tile_step<kVecs>(t, key, keys); });
    }
    update_key_rows(key, keys);
  }

  // Whether every query of the block attends all of these keys, as far as is known without a bias.
  bool is_unmasked(int64_t key, int64_t keys) const {
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      if (!stages_[t].is_unmasked(key, keys)) return false;
    }
    return true;
  }

  // Whether masked entries of P and dS have to be marked, since what they are multiplied with holds
  // NaN or Inf.
  bool marks_masked() const {
    return !(keys_are_finite_ && queries_are_finite_ && grad_out_is_finite_ &&
             statistics_are_finite_);
  }
  static Factors factors(bool are_finite) {
    return are_finite ? Factors::kAll : Factors::kUnmasked;
  }

  // Packs Q and dO of a tile, and gathers what a lane needs: row_max, 1 / row_sum, delta.
  template <int kVecs>
  void prepare(int64_t t) {
    constexpr int kLanes = kVecs * V::kWidth;
    const Shape& shape = p_.shape;
    const int64_t at = tiles_.begin(t);
    const int64_t first = first_ + at;
    const int64_t count = tiles_.end(t) - at;
    const double keep = dropout_keep_scale(p_.score.dropout);
    const RowView<T> query =
        read_rows<V>(p_.query, p_.storage, batch_, head_, first, count, shape.head_dim,
                     scratch_.query_rows + shape.head_dim * at);
    const RowView<T> grad_out =
        read_rows<V>(p_.grad_out, p_.grad_out_storage, batch_, head_, first, count, shape.value_dim,
                     scratch_.grad_out_rows + shape.value_dim * at);
    if (t == 0) query_rows_ = query, grad_out_rows_ = grad_out;
    if (can_exclude(p_.score) || shape.keys == 0) {
      queries_are_finite_ &= all_finite<V>(query.data, query.stride, count, shape.head_dim);
      grad_out_is_finite_ &= all_finite<V>(grad_out.data, grad_out.stride, count, shape.value_dim);
    }
    pack_transposed<V, kLanes>(query.data, query.stride, count, shape.head_dim, scale_,
                               scratch_.queries + shape.head_dim * at);
    pack_transposed<V, kLanes>(grad_out.data, grad_out.stride, count, shape.value_dim,
                               static_cast<T>(keep), scratch_.grad_out + shape.value_dim * at);
    const int64_t row = row_index(first);
    const T* saved_max = static_cast<const T*>(p_.row_max) + row;
    const T* saved_sum = static_cast<const T*>(p_.row_sum) + row;
    const T* grad_lse = p_.grad_lse == nullptr ? nullptr : static_cast<const T*>(p_.grad_lse) + row;
    stages_[t].start(p_.score, shape, batch_, head_, first, count, scratch_.bias);
    const Reg minus_inf = V::broadcast(-std::numeric_limits<T>::infinity());
    for (int64_t lane = 0; lane < kLanes; lane += V::kWidth) {
      const int64_t rows = max_of(0, min_of(count - lane, V::kWidth));
      const typename V::Mask mask = V::first(rows);
      const auto read = [&](const T* p) { return V::load(p + lane, mask); };
      const Reg max = read(saved_max), sum = read(saved_sum);
      // rowsum(dO o O) - dlse. Summed as dP is: where a row attends one key only, dS is 0.
      const RowView<T> out = read_rows<V>(p_.out, p_.out_storage, batch_, head_, first + lane, rows,
                                          shape.value_dim, scratch_.value_rows);
      Reg delta = row_dots<V>(out.data, out.stride, rows, shape.value_dim,
                              {scratch_.grad_out + shape.value_dim * at + lane, kLanes});
      if (keep != 1) delta = V::mul(delta, V::broadcast(static_cast<T>(keep > 0 ? 1 / keep : 0)));
      if (!grad_out_is_finite_) delta = without_empty_rows(delta, stages_[t], lane, rows);
      if (grad_lse != nullptr) delta = V::sub(delta, read(grad_lse));
      const Reg base = V::if_equal(max, minus_inf, V::zero(), max);
      const Reg inverse = V::if_equal(sum, V::zero(), V::zero(), V::div(V::broadcast(T(1)), sum));
      statistics_are_finite_ &= is_zero<V>(V::fma(base, V::zero(), V::mul(inverse, V::zero())));
      V::store(scratch_.row_max + at + lane, base);
      V::store(scratch_.inverse_sum + at + lane, inverse);
      V::store(scratch_.delta + at + lane, delta);
      if (p_.grad_sink_rows != nullptr) {
        // dS of a key whose dP is 0.
        Reg weight[1] = {V::sub(V::broadcast(stages_[t].sink()), base)};
        exp<V>(weight);
        const Reg grad = V::mul(V::mul(weight[0], inverse), V::sub(V::zero(), delta));
        V::store(static_cast<T*>(p_.grad_sink_rows) + row + lane,
                 V::if_equal(sum, V::zero(), V::zero(), grad), mask);
      }
    }
  }

  // A row that attends nothing is 0 whatever its inputs: what is asked of it, NaN too, goes
  // nowhere.
  [[gnu::noinline]] static Reg without_empty_rows(Reg delta, const ScoreStage<V>& stage,
                                                  int64_t lane, int64_t rows) {
    T each[V::kWidth];
    V::store(each, delta);
    for (int64_t i = 0; i < rows; ++i) {
      if (!stage.attends_any(lane + i)) each[i] = T(0);
    }
    return V::load(each);
  }

  template <int kVecs>
  void tile_step(int64_t t, int64_t key, int64_t keys) {
    const ScoreStage<V>& stage = stages_[t];
    const int64_t first = min_of(max_of(0, stage.ranges().key_begin() - key), keys);
    const int64_t last = max_of(first, min_of(stage.ranges().key_end() - key, keys));
    T* weights = scratch_.weights + tiles_.begin(t);
    T* grad_scores = scratch_.grad_scores + tiles_.begin(t);
    const Reg nothing = V::broadcast(marks_masked() ? -T(0) : T(0));
    fill<kVecs>(0, first, nothing, weights, grad_scores);
    fill<kVecs>(last, keys, nothing, weights, grad_scores);
    if (first == last) return;
    attend<kVecs>(t, key + first, last - first, weights + first * Scratch::kStride,
                  grad_scores + first * Scratch::kStride);
  }

  // Makes keys [key, key + keys) the ones to read.
  void read_keys(int64_t key, int64_t keys) {
    first_key_ = key;
    key_rows_ = read_rows<V>(p_.key, p_.storage, batch_, key_head_, key, keys, p_.shape.head_dim,
                             scratch_.key_rows);
    value_rows_ = read_rows<V>(p_.value, p_.storage, batch_, value_head_, key, keys,
                               p_.shape.value_dim, scratch_.value_rows);
  }
  const T* key_at(int64_t key) const { return key_rows_.at(key - first_key_); }

  // P and dS of a tile and the keys that it attends, and what is summed from them over keys.
  template <int kVecs>
  void attend(int64_t t, int64_t key, int64_t keys, T* weights, T* grad_scores) {
    ScoreStage<V>& stage = stages_[t];
    // Laid out as dS, and so at the same place.
    T* slope_of_cap = scratch_.slope_of_cap + (grad_scores - scratch_.grad_scores);
    stage.template start_block<kVecs>(key, keys);
    stage.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int, bool limited) {
          form_weights<kVecs, kLive>(t, key, j, n, limited, weights, grad_scores, slope_of_cap);
        });
    if (stage.has_dropout()) {
      stage.template mark_dropped<kVecs>(weights, Scratch::kStride, key, keys);
    }
    stage.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int, bool limited) {
          form_grad_scores<kVecs, kLive>(t, key, j, n, limited, weights, grad_scores);
        });
    if (marks_masked()) {
      stage.template mark_masked<kVecs>(weights, Scratch::kStride, key, keys);
      stage.template mark_masked<kVecs>(grad_scores, Scratch::kStride, key, keys);
    }
    const int64_t at = tiles_.begin(t);
    const int64_t count = tiles_.end(t) - at;
    if (p_.grad_bias != nullptr) {
      const BiasGradient<V> bias(p_, batch_, head_);
      bias.add(first_ + at, count, key, keys, grad_scores, Scratch::kStride);
    }
    if (p_.grad_slope_rows != nullptr) {
      stage.template add_slope_gradients<kVecs>(
          grad_scores, Scratch::kStride, key, keys,
          static_cast<T*>(p_.grad_slope_rows) + row_index(first_ + at));
    }
    if (p_.score.softcap > 0) {
      stage.ranges().template for_segments<kVecs>(
          key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool) {
            const int64_t offset = j * Scratch::kStride + dead * V::kWidth;
            multiply<kLive>(grad_scores + offset, slope_of_cap + offset, n);
          });
    }
    if (p_.grad_query.data == nullptr) return;
    int64_t begins[kVecs * V::kWidth], ends[kVecs * V::kWidth];
    const bool ragged = !stage.ranges().is_unlimited(key, keys);
    if (ragged) stage.ranges().attended_keys(key, keys, begins, ends);
    update_rows<V>(factors(keys_are_finite_), {grad_scores, 1, Scratch::kStride},
                   {key_at(key), key_rows_.stride}, keys,
                   row_pointer<T>(p_.grad_query, batch_, head_, first_ + at),
                   p_.grad_query.strides.row, count, p_.shape.head_dim,
                   {true, scale_, nullptr, nullptr}, ragged ? Terms{begins, ends} : Terms{});
  }

  // x *= factor for kVecs vectors of `keys` rows. A 0 stays what it is, whatever the factor of a
  // masked one; others become no -0, the mark of those.
  template <int kVecs>
  static void multiply(T* x, const T* factor, int64_t keys) {
    for (int64_t j = 0; j < keys; ++j, x += Scratch::kStride, factor += Scratch::kStride) {
      each<kVecs>([&](int v) {
        T* at = x + v * V::kWidth;
        const Reg y = V::load(at);
        const Reg product = V::mul(y, V::load(factor + v * V::kWidth));
        V::store(at, V::if_equal(y, V::zero(), y, V::add(product, V::zero())));
      });
    }
  }

  /// Of a query in what has one number for each row.
  int64_t row_index(int64_t query) const {
    return (batch_ * p_.shape.heads + head_) * p_.shape.queries + query;
  }

  // Fills kVecs vectors of P and dS for keys j … end - 1.
  template <int kVecs>
  static void fill(int64_t j, int64_t end, Reg x, T* weights, T* grad_scores) {
    for (; j < end; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        V::store(weights + j * Scratch::kStride + v * V::kWidth, x);
        V::store(grad_scores + j * Scratch::kStride + v * V::kWidth, x);
      }
    }
  }

  // One segment of weights[key][lane] = P, its sign set where dropout drops it.
  template <int kVecs, int kLive>
  void form_weights(int64_t t, int64_t block, int64_t j, int64_t keys, bool limited, T* weights,
                    T* grad_scores, T* slope_of_cap) {
    constexpr int64_t kStride = Scratch::kStride;
    constexpr int64_t kLanes = kVecs * V::kWidth;
    constexpr int64_t kSkip = (kVecs - kLive) * V::kWidth;
    const int64_t at = tiles_.begin(t);
    if constexpr (kSkip > 0) {
      for (int64_t i = j; i < j + keys; ++i) {
        for (int64_t lane = 0; lane < kSkip; lane += V::kWidth) {
          V::store(weights + i * kStride + lane, V::zero());
          V::store(grad_scores + i * kStride + lane, V::zero());
        }
      }
    }
    T* live = weights + j * kStride + kSkip;
    raw_scores<V, kLive>(key_at(block + j), key_rows_.stride, keys, p_.shape.head_dim,
                         {scratch_.queries + p_.shape.head_dim * at + kSkip, kLanes}, live,
                         kStride);
    if (!limited && !changes_scores(p_.score)) {
      weigh<kLive, false>(live, keys, at + kSkip);
    } else {
      Reg unused[kLive];
      for (int v = 0; v < kLive; ++v) unused[v] = V::zero();
      stages_[t].template apply<kVecs, kLive>(live, kStride, block, j, keys, limited, unused,
                                              slope_of_cap + j * kStride + kSkip);
      // Marked later, masked weights may be anything until then; others keep what a NaN makes of
      // them.
      marks_masked() ? weigh<kLive, false>(live, keys, at + kSkip)
                     : weigh<kLive, true>(live, keys, at + kSkip);
    }
  }

  // kMasked: a weight of an excluded key is 0 even where the row's statistics are NaN.
  template <int kVecs, bool kMasked>
  [[gnu::noinline]] void weigh(T* row, int64_t keys, int64_t at) const {
    constexpr int64_t kStride = Scratch::kStride;
    const Reg minus_inf = V::broadcast(-std::numeric_limits<T>::infinity());
    for (int v = 0; v < kVecs; ++v, at += V::kWidth, row += V::kWidth) {
      const Reg max = V::load(scratch_.row_max + at);
      const Reg inverse = V::load(scratch_.inverse_sum + at);
      for_exp_groups<V>(
          keys, [&]<int kRows>(int64_t j) __attribute__((always_inline)) {
            T* first = row + j * kStride;
            Reg weight[kRows];
            each<kRows>([&](int i) { weight[i] = V::sub(V::load(first + i * kStride), max); });
            exp<V>(weight);
            each<kRows>([&](int i) {
              T* p = first + i * kStride;
              weight[i] = V::mul(weight[i], inverse);
              if constexpr (kMasked) {
                weight[i] = V::if_equal(V::load(p), minus_inf, V::zero(), weight[i]);
              }
              V::store(p, weight[i]);
            });
          });
    }
  }

  template <int kVecs, int kLive>
  void form_grad_scores(int64_t t, int64_t block, int64_t j, int64_t keys, bool limited, T* weights,
                        T* grad_scores) {
    constexpr int64_t kLanes = kVecs * V::kWidth;
    constexpr int64_t kSkip = (kVecs - kLive) * V::kWidth;
    const int64_t at = tiles_.begin(t);
    const Right<T> packed = {scratch_.grad_out + p_.shape.value_dim * at + kSkip, kLanes};
    const int64_t offset = j * Scratch::kStride + kSkip;
    const auto form = [&]<bool kMasked, bool kDropout>() {
      form_grad_scores_as<kLive, kMasked, kDropout>(packed, at + kSkip, block + j, keys,
                                                    weights + offset, grad_scores + offset);
    };
    const bool zeroes_masked = !marks_masked();
    if (stages_[t].has_dropout()) {
      zeroes_masked ? form.template operator()<true, true>()
                    : form.template operator()<false, true>();
    } else if (zeroes_masked && (limited || p_.score.bias_kind != BiasKind::kNone)) {
      form.template operator()<true, false>();
    } else {
      form.template operator()<false, false>();
    }
  }

  // dS = P o (dP - delta) as each tile of dP^T = V dO^T leaves the registers.
  template <int kVecs, bool kMasked, bool kDropout>
  [[gnu::noinline]] void form_grad_scores_as(Right<T> packed, int64_t at, int64_t key, int64_t keys,
                                             T* weights, T* grad_scores) const {
    constexpr int W = V::kWidth;
    constexpr int64_t kStride = Scratch::kStride;
    const Reg keep = V::broadcast(static_cast<T>(dropout_keep_scale(p_.score.dropout)));
    score_tiles<V, kVecs>(value_rows_.at(key - first_key_), value_rows_.stride, keys,
                          p_.shape.value_dim, packed,
                          [&]<int kRows>(int64_t j, Reg(&tile)[kRows][kVecs]) {
#pragma GCC unroll 4
                            for (int v = 0; v < kVecs; ++v) {
                              const Reg delta = V::load(scratch_.delta + at + v * W);
#pragma GCC unroll 16
                              for (int r = 0; r < kRows; ++r) {
                                T* weight = weights + (j + r) * kStride + v * W;
                                Reg w = V::load(weight);
                                Reg grad = tile[r][v];
                                if constexpr (kDropout) {
                                  const Reg signed_weight = w;
                                  grad = V::if_positive(signed_weight, grad);
                                  w = V::abs(w);
                                  V::store(weight, V::if_positive(signed_weight, V::mul(w, keep)));
                                }
                                Reg ds = V::mul(w, V::sub(grad, delta));
                                if constexpr (kMasked)
                                  ds = V::if_equal(w, V::zero(), V::zero(), ds);
                                V::store(grad_scores + (j + r) * kStride + v * W, ds);
                              }
                            }
                          });
  }

  // dK and dV of a block of keys, each from the queries that may attend it.
  void update_key_rows(int64_t key, int64_t keys) {
    int64_t begins[Scratch::kMaxKeys], ends[Scratch::kMaxKeys];
    const bool ragged = !stages_[0].ranges().is_unlimited(key, keys) ||
                        !stages_[tiles_.count() - 1].ranges().is_unlimited(key, keys);
    if (ragged) attending_queries(key, keys, begins, ends);
    const Terms terms = ragged ? Terms{begins, ends} : Terms{};
    if (p_.grad_value.data != nullptr) {
      update_rows<V>(factors(grad_out_is_finite_), {scratch_.weights, Scratch::kStride, 1},
                     {grad_out_rows_.data, grad_out_rows_.stride}, count_,
                     row_pointer<T>(p_.grad_value, batch_, value_head_, key),
                     p_.grad_value.strides.row, keys, p_.shape.value_dim,
                     {true, T(1), nullptr, nullptr}, terms);
    }
    if (p_.grad_key.data != nullptr) {
      update_rows<V>(factors(queries_are_finite_), {scratch_.grad_scores, Scratch::kStride, 1},
                     {query_rows_.data, query_rows_.stride}, count_,
                     row_pointer<T>(p_.grad_key, batch_, key_head_, key), p_.grad_key.strides.row,
                     keys, p_.shape.head_dim, {true, scale_, nullptr, nullptr}, terms);
    }
  }

  // No query before begin[j], or at or past end[j], attends key + j. As close as that where the
  // limits and the starts of queries rise, as they do unless positions are given.
  void attending_queries(int64_t key, int64_t keys, int64_t* begin, int64_t* end) const {
    int64_t j = 0;
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      const int64_t* limits = stages_[t].ranges().limits();
      for (int64_t query = tiles_.begin(t); query < tiles_.end(t); ++query) {
        for (const int64_t limit = *limits++; j < keys && key + j < limit; ++j) begin[j] = query;
      }
    }
    for (; j < keys; ++j) begin[j] = count_;
    j = keys - 1;
    for (int64_t t = tiles_.count() - 1; t >= 0; --t) {
      const int64_t* starts = stages_[t].ranges().starts() - tiles_.begin(t);
      for (int64_t query = tiles_.end(t) - 1; query >= tiles_.begin(t); --query) {
        for (; j >= 0 && key + j >= starts[query]; --j) end[j] = max_of(begin[j], query + 1);
      }
    }
    for (; j >= 0; --j) end[j] = begin[j];
  }

  const BackwardParams& p_;
  const Scratch& scratch_;
  const int64_t batch_, head_, key_head_, value_head_;
  const int64_t first_, count_;
  const QueryTiles<V> tiles_;
  const T scale_;
  int64_t key_begin_ = p_.shape.keys, key_end_ = 0;
  RowView<T> query_rows_ = {}, grad_out_rows_ = {};  // of the block
  RowView<T> key_rows_ = {}, value_rows_ = {};       // of a step, whose first key is:
  int64_t first_key_ = 0;
  // Of the block.
  bool queries_are_finite_ = true, grad_out_is_finite_ = true, statistics_are_finite_ = true;
  bool keys_are_finite_ = true;  // of a step
  ScoreStage<V> stages_[kBlockTiles];
};

}  // namespace
}  // namespace flash
