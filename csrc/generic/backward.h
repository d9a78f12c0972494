#pragma once
// The backward of a block of queries. Weights are recomputed block by block from Q, K and the saved
// row max and row sum.
//
// Dao et al., "FlashAttention" (arXiv:2205.14135), appendix B.2 and algorithm 4:
//
//   P  = exp(S - row_max) / row_sum           delta = rowsum(dO o O) - dlse
//   dP = dO V^T                               dS = P o (dP - delta)
//   dV += P^T dO        dQ += scale dS K      dK += scale dS^T Q      dbias += dS
//
// A block is up to kBlockTiles tiles of queries by `block` keys. S^T and dP^T are formed tile by
// tile with queries as lanes. dQ, dK and dV are updated in place, in their row-major layout.

#include <cstdint>

#include "csrc/generic/backward_scratch.h"
#include "csrc/generic/bias_gradient.h"
#include "csrc/generic/gradient_rows.h"
#include "csrc/generic/row_statistics.h"
#include "csrc/generic/score_gradient.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

/// Stores in dQ, dK and dV, as `stores` says, or adds to them and to dbias, what a block of queries
/// of one (batch, head) contributes.
template <class V>
class BackwardBlock {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  using Scratch = BackwardScratch<V>;

  BackwardBlock(const BackwardParams& p, const Scratch& scratch, int64_t batch, int64_t head,
                Range queries, Stores stores = {})
      : p_(p),
        scratch_(scratch),
        batch_(batch),
        head_(head),
        key_head_(head / (p.shape.heads / p.shape.key_heads)),
        value_head_(head / (p.shape.heads / p.shape.value_heads)),
        first_(queries.begin),
        count_(queries.end - queries.begin),
        tiles_(count_),
        scale_(static_cast<T>(p.score.scale)),
        stores_(stores) {
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      with_vecs<V::kScoreVecs>(tiles_.vecs(t), [&]<int kVecs>() { prepare<kVecs>(t); });
      const ScoreStage<V>& stage = stages_[t];
      if (stage.ranges().key_begin() == stage.ranges().key_end()) continue;
      key_begin_ = min_of(key_begin_, stage.ranges().key_begin());
      key_end_ = max_of(key_end_, stage.ranges().key_end());
    }
  }

  /// Writes the contribution of keys [keys.begin, keys.end).
  void run(Range keys) {
    const int64_t begin = clamp(key_begin_, keys.begin, keys.end);
    const int64_t end = clamp(key_end_, begin, keys.end);
    for (int64_t key = begin; key < end; key += scratch_.block) {
      step(key, min_of(scratch_.block, end - key));
    }
    clear_stored<T>(p_, batch_, head_, {}, {keys.begin, begin}, stores_);
    clear_stored<T>(p_, batch_, head_, {}, {end, keys.end}, stores_);
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      if (stored_query_[t]) continue;
      const Range queries = {first_ + tiles_.begin(t), first_ + tiles_.end(t)};
      clear_stored<T>(p_, batch_, head_, queries, {}, stores_);
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

  // Whether every query of the block attends all of these keys. False if there is a bias.
  bool is_unmasked(int64_t key, int64_t keys) const {
    for (int64_t t = 0; t < tiles_.count(); ++t) {
      if (!stages_[t].is_unmasked(key, keys)) return false;
    }
    return true;
  }

  // Whether masked entries of P and dS must be marked, because NaN or Inf is among the rows that
  // they are multiplied by.
  bool marks_masked() const {
    return !(keys_are_finite_ && queries_are_finite_ && grad_out_is_finite_ &&
             statistics_are_finite_);
  }
  static Factors factors(bool are_finite) {
    return are_finite ? Factors::kAll : Factors::kUnmasked;
  }

  // Packs Q and dO of a tile and computes row_max, 1 / row_sum and delta of each lane.
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
    if (can_mask(p_.score) || shape.keys == 0) {
      queries_are_finite_ &= all_finite<V>(query.data, query.stride, count, shape.head_dim);
      grad_out_is_finite_ &= all_finite<V>(grad_out.data, grad_out.stride, count, shape.value_dim);
    }
    pack_transposed<V, kLanes>(query.data, query.stride, count, shape.head_dim, scale_,
                               scratch_.queries + shape.head_dim * at);
    pack_transposed<V, kLanes>(grad_out.data, grad_out.stride, count, shape.value_dim,
                               static_cast<T>(keep), scratch_.grad_out + shape.value_dim * at);
    stages_[t].start(p_.score, shape, batch_, head_, first, count, scratch_.bias);
    for (int64_t lane = 0; lane < kLanes; lane += V::kWidth) {
      const int64_t rows = max_of(0, min_of(count - lane, V::kWidth));
      // rowsum(dO o O), summed in the order of dP, so that dS is exactly 0 for a row that attends a
      // single key.
      const RowView<T> out = read_rows<V>(p_.out, p_.out_storage, batch_, head_, first + lane, rows,
                                          shape.value_dim, scratch_.value_rows);
      Reg delta = row_dots<V>(out.data, out.stride, rows, shape.value_dim,
                              {scratch_.grad_out + shape.value_dim * at + lane, kLanes});
      if (keep != 1) delta = V::mul(delta, V::broadcast(static_cast<T>(keep > 0 ? 1 / keep : 0)));
      V::store(scratch_.delta + at + lane, delta);
    }
    statistics_are_finite_ &=
        read_statistics<V>(p_, stages_[t], row_index(first), count, kLanes, !grad_out_is_finite_,
                           {scratch_.row_max + at, scratch_.inverse_sum + at, scratch_.delta + at});
  }

  template <int kVecs>
  void tile_step(int64_t t, int64_t key, int64_t keys) {
    const ScoreStage<V>& stage = stages_[t];
    const int64_t first = min_of(max_of(0, stage.ranges().key_begin() - key), keys);
    const int64_t last = max_of(first, min_of(stage.ranges().key_end() - key, keys));
    T* weights = scratch_.weights + tiles_.begin(t);
    T* grad_scores = scratch_.grad_scores + tiles_.begin(t);
    const Reg masked = V::broadcast(marks_masked() ? -T(0) : T(0));
    fill_rows<V, kVecs>(0, first, masked, weights, grad_scores);
    fill_rows<V, kVecs>(last, keys, masked, weights, grad_scores);
    if (first == last) return;
    attend<kVecs>(t, key + first, last - first, weights + first * Scratch::kStride,
                  grad_scores + first * Scratch::kStride);
  }

  // Selects keys [key, key + keys) for the functions below.
  void read_keys(int64_t key, int64_t keys) {
    first_key_ = key;
    key_rows_ = read_rows<V>(p_.key, p_.storage, batch_, key_head_, key, keys, p_.shape.head_dim,
                             scratch_.key_rows);
    value_rows_ = read_rows<V>(p_.value, p_.storage, batch_, value_head_, key, keys,
                               p_.shape.value_dim, scratch_.value_rows);
  }
  const T* key_at(int64_t key) const { return key_rows_.at(key - first_key_); }

  // Forms P and dS of a tile for the keys that it attends, and updates what sums them over keys.
  template <int kVecs>
  void attend(int64_t t, int64_t key, int64_t keys, T* weights, T* grad_scores) {
    ScoreStage<V>& stage = stages_[t];
    // It has the layout of dS, so the offset is the same.
    T* cap_derivative = scratch_.cap_derivative + (grad_scores - scratch_.grad_scores);
    stage.template start_block<kVecs>(key, keys);
    stage.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int, bool limited) {
          form_weights<kVecs, kLive>(t, key, j, n, limited, weights, grad_scores, cap_derivative);
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
    // The gradients above are of terms added after the cap, so only what follows passes through it.
    if (p_.score.softcap > 0) {
      stage.ranges().template for_segments<kVecs>(
          key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool) {
            const int64_t offset = j * Scratch::kStride + dead * V::kWidth;
            multiply_rows<V, kLive>(grad_scores + offset, cap_derivative + offset, n);
          });
    }
    if (p_.grad_query.data == nullptr) return;
    int64_t begins[kVecs * V::kWidth], ends[kVecs * V::kWidth];
    const bool ragged = !stage.ranges().is_unlimited(key, keys);
    if (ragged) stage.ranges().attended_keys(key, keys, begins, ends);
    update_rows<V>(factors(keys_are_finite_), LeftColumns<T>{grad_scores, Scratch::kStride},
                   {key_at(key), key_rows_.stride}, keys,
                   row_pointer<T>(p_.grad_query, batch_, head_, first_ + at),
                   p_.grad_query.strides.row, count, p_.shape.head_dim,
                   {stored_query_[t] || !stores_.query, scale_, nullptr, nullptr},
                   ragged ? Terms{begins, ends} : Terms{});
    stored_query_[t] = true;
  }

  /// The index of a query in an array with one element per row.
  int64_t row_index(int64_t query) const {
    return (batch_ * p_.shape.heads + head_) * p_.shape.queries + query;
  }

  // Forms one segment of weights[key][lane] = P, before dropout.
  template <int kVecs, int kLive>
  void form_weights(int64_t t, int64_t block, int64_t j, int64_t keys, bool limited, T* weights,
                    T* grad_scores, T* cap_derivative) {
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
    const T* row_max = scratch_.row_max + at + kSkip;
    const T* inverse_sum = scratch_.inverse_sum + at + kSkip;
    if (!limited && !changes_scores(p_.score)) {
      weights_from_scores<V, kLive, false>(row_max, inverse_sum, keys, live);
    } else {
      Reg unused[kLive];
      for (int v = 0; v < kLive; ++v) unused[v] = V::zero();
      stages_[t].template apply<kVecs, kLive>(live, kStride, block, j, keys, limited, unused,
                                              cap_derivative + j * kStride + kSkip);
      // If masked weights are marked later, they may have any value until then.
      marks_masked() ? weights_from_scores<V, kLive, false>(row_max, inverse_sum, keys, live)
                     : weights_from_scores<V, kLive, true>(row_max, inverse_sum, keys, live);
    }
  }

  template <int kVecs, int kLive>
  void form_grad_scores(int64_t t, int64_t block, int64_t j, int64_t keys, bool limited, T* weights,
                        T* grad_scores) {
    constexpr int64_t kLanes = kVecs * V::kWidth;
    constexpr int64_t kSkip = (kVecs - kLive) * V::kWidth;
    const int64_t at = tiles_.begin(t);
    const Right<T> grad_out = {scratch_.grad_out + p_.shape.value_dim * at + kSkip, kLanes};
    const RowView<T> values = {value_rows_.at(block + j - first_key_), value_rows_.stride};
    const int64_t offset = j * Scratch::kStride + kSkip;
    const auto form = [&]<bool kMasked, bool kDropout>() {
      score_gradients<V, kLive, kMasked, kDropout>(
          values, keys, p_.shape.value_dim, grad_out, scratch_.delta + at + kSkip,
          dropout_keep_scale(p_.score.dropout), weights + offset, grad_scores + offset);
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

  // Updates dK and dV of a block of keys, each row from the queries that may attend it.
  void update_key_rows(int64_t key, int64_t keys) {
    int64_t begins[Scratch::kMaxKeys], ends[Scratch::kMaxKeys];
    const bool ragged = !stages_[0].ranges().is_unlimited(key, keys) ||
                        !stages_[tiles_.count() - 1].ranges().is_unlimited(key, keys);
    if (ragged) attending_queries(key, keys, begins, ends);
    const Terms terms = ragged ? Terms{begins, ends} : Terms{};
    if (p_.grad_value.data != nullptr) {
      update_rows<V>(factors(grad_out_is_finite_), Left<T>{scratch_.weights, Scratch::kStride, 1},
                     {grad_out_rows_.data, grad_out_rows_.stride}, count_,
                     row_pointer<T>(p_.grad_value, batch_, value_head_, key),
                     p_.grad_value.strides.row, keys, p_.shape.value_dim,
                     {!stores_.value, T(1), nullptr, nullptr}, terms);
    }
    if (p_.grad_key.data != nullptr) {
      update_rows<V>(factors(queries_are_finite_),
                     Left<T>{scratch_.grad_scores, Scratch::kStride, 1},
                     {query_rows_.data, query_rows_.stride}, count_,
                     row_pointer<T>(p_.grad_key, batch_, key_head_, key), p_.grad_key.strides.row,
                     keys, p_.shape.head_dim, {!stores_.key, scale_, nullptr, nullptr}, terms);
    }
  }

  // Finds [begin[j], end[j]) that contains every query that may attend key + j. The bounds are
  // tight if the key ranges of the queries move forward, as they do unless positions are given.
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
  const Stores stores_;
  bool stored_query_[kBlockTiles] = {};  // tiles whose rows of dQ have been written
  int64_t key_begin_ = p_.shape.keys, key_end_ = 0;
  RowView<T> query_rows_ = {}, grad_out_rows_ = {};  // of the block
  RowView<T> key_rows_ = {}, value_rows_ = {};       // of the current step, from first_key_ on
  int64_t first_key_ = 0;
  bool queries_are_finite_ = true, grad_out_is_finite_ = true, statistics_are_finite_ = true;
  bool keys_are_finite_ = true;  // of the current step
  ScoreStage<V> stages_[kBlockTiles];
};

}  // namespace
}  // namespace flash
