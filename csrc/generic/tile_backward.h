#pragma once
// The backward of bfloat16 tensors, or of float in parts, on tile registers: the algorithm of
// backward.h with all five products as in tile_product.h.
//
//   product     sum                 left operand           right operand
//   scores      S^T[key][query]     K[key][d]              Q^T[d][query]
//   dP          dP^T[key][query]    V[key][d]              dO^T[d][query]
//   dQ          dQ^T[d][query]      K^T[d][key]            dS^T[key][query]
//   dV, dK      dV[key][d]          P^T, dS^T[key][query]  dO, Q[query][d]
//
// Left to backward.h, a block of queries and keys at a time: bfloat16 whose masked keys could meet
// NaN or Inf, and float that rows_fit_parts refuses.

#include <cstdint>

#include "csrc/generic/backward_pass.h"
#include "csrc/generic/lanes.h"
#include "csrc/generic/tile_score_gradient.h"

namespace flash {
namespace {

/// Adds to dQ, dK, dV and dbias what a block of queries of one (batch, head) contributes.
template <class Vector, class M, int kParts>
class TileBackwardBlock {
 public:
  using V = TileVec<Vector>;
  using Reg = typename V::Reg;
  using Scratch = TileBackwardScratch<Vector>;
  using Rows = RowView<Element<kParts>>;

  TileBackwardBlock(const BackwardParams& p, const Scratch& scratch, int64_t batch, int64_t head,
                    Range queries)
      : p_(p),
        scratch_(scratch),
        fallback_(p, scratch.fallback),
        batch_(batch),
        head_(head),
        key_head_(head / (p.shape.heads / p.shape.key_heads)),
        value_head_(head / (p.shape.heads / p.shape.value_heads)),
        first_(queries.begin),
        count_(queries.end - queries.begin),
        tiles_(ceil_div(count_, kTileLanes)) {
    for (int64_t t = 0; t < tiles_; ++t) {
      prepare(t);
      const KeyRanges<V>& ranges = stages_[t].ranges();
      if (ranges.key_begin() == ranges.key_end()) continue;
      key_begin_ = min_of(key_begin_, ranges.key_begin());
      key_end_ = max_of(key_end_, ranges.key_end());
    }
  }

  /// Adds the contribution of keys [keys.begin, keys.end).
  void run(Range keys) {
    const int64_t end = min_of(keys.end, key_end_);
    const int64_t begin = max_of(keys.begin, key_begin_);
    if (begin >= end) return;
    std::memset(scratch_.grad_queries, 0, tiles_ * scratch_.grad_elements * sizeof(float));
    for (int64_t key = begin; key < end; key += Scratch::kKeys) {
      step(key, min_of(Scratch::kKeys, end - key));
    }
    if (p_.grad_query.data == nullptr) return;
    for (int64_t t = 0; t < tiles_; ++t) add_query_rows(t);
  }

 private:
  static constexpr int64_t kStride = Scratch::kStride;

  int64_t lanes_of(int64_t t) const { return min_of(kTileLanes, count_ - t * kTileLanes); }

  Rows rows_of(const ConstRows& rows, int64_t head, int64_t row) const {
    return {row_pointer<Element<kParts>>(rows, batch_, head, row), rows.strides.row};
  }

  // Packs Q and dO of a tile and computes row_max, 1 / row_sum and delta of each lane.
  void prepare(int64_t t) {
    const Shape& shape = p_.shape;
    const int64_t at = t * kTileLanes, first = first_ + at, count = lanes_of(t);
    const Rows queries = rows_of(p_.query, head_, first);
    const Rows grad_out = rows_of(p_.grad_out, head_, first);
    // As in the forward, only float queries are scaled before their product.
    const float scale = kParts == 1 ? 1 : static_cast<float>(p_.score.scale);
    pack_columns_of(queries, count, shape.head_dim, scale,
                    scratch_.queries + t * kParts * scratch_.query_words, scratch_.query_words);
    pack_columns_of(grad_out, count, shape.value_dim, 1,
                    scratch_.grad_out + t * kParts * scratch_.grad_words, scratch_.grad_words);
    pack_pairs_of(t, queries, count, shape.head_dim, scratch_.query_pairs,
                  scratch_.query_pair_words);
    pack_pairs_of(t, grad_out, count, shape.value_dim, scratch_.grad_pairs,
                  scratch_.grad_pair_words);
    with_stored<float>(p_.out.data, p_.out_storage, [&](const auto* out) {
      out += row_offset(p_.out, batch_, head_, first);
      for (int64_t i = 0; i < kTileLanes; ++i, out += p_.out.strides.row) {
        scratch_.delta[at + i] = i < count ? row_dot(out, grad_out.at(i)) : 0;
      }
    });
    if (kParts > 1 || can_mask(p_.score) || shape.keys == 0) {
      rows_fit_ &= fit(queries, count, shape.head_dim) && fit(grad_out, count, shape.value_dim);
    }
    stages_[t].start(p_.score, shape, batch_, head_, first, count, scratch_.bias);
    const int64_t row = (batch_ * shape.heads + head_) * shape.queries + first;
    rows_fit_ &=
        read_statistics<V>(p_, stages_[t], row, count, kTileLanes, !rows_fit_,
                           {scratch_.row_max + at, scratch_.inverse_sum + at, scratch_.delta + at});
    if constexpr (kParts > 1) rows_fit_ &= deltas_fit_parts<V>(scratch_.delta + at, kTileLanes);
  }

  void pack_columns_of(Rows rows, int64_t count, int64_t depth, float factor, Word* to,
                       int64_t part) const {
    for_parts<V, kParts>(rows, count, depth, factor, scratch_.stage,
                         [&](int p, int64_t, RowView<BFloat16> from, int64_t) {
                           pack_columns<V, 2>(from, count, depth, scratch_.padded, to + p * part);
                         });
  }

  void pack_pairs_of(int64_t t, Rows rows, int64_t count, int64_t columns, Word* to,
                     int64_t part) const {
    constexpr int64_t kWords = kTileWords * kTileLanes;
    for_parts<V, kParts>(rows, count, columns, 1, scratch_.stage,
                         [&](int p, int64_t, RowView<BFloat16> from, int64_t) {
                           pack_pairs<V>(from, count, columns, to + p * part + t * kWords,
                                         tiles_ * kWords);
                         });
  }

  // The dot product of a row of O and one of dO.
  template <class Stored>
  float row_dot(const Stored* out, const Element<kParts>* grad_out) const {
    const int64_t columns = p_.shape.value_dim;
    Reg sum = V::zero();
    int64_t c = 0;
    for (; c + V::kWidth <= columns; c += V::kWidth) {
      sum = V::fma(V::load(out + c), V::load(grad_out + c), sum);
    }
    if (c < columns) {
      sum = V::fma(load_first<V>(out + c, columns - c), load_first<V>(grad_out + c, columns - c),
                   sum);
    }
    return sum_of_lanes<V>(sum);
  }

  // Whether tiles may compute with these rows, some of which are of masked keys.
  static bool fit(Rows rows, int64_t count, int64_t columns) {
    if constexpr (kParts == 1) {
      return rows_are_finite<V>(rows, count, columns);
    } else {
      return rows_fit_parts<V>(rows, count, columns);
    }
  }

  bool tiles_compute(Rows key_rows, Rows value_rows, int64_t key, int64_t keys) const {
    // Lanes past the end hold zeros, which Inf in a key or a value would make NaN.
    const bool is_whole = count_ % kTileLanes == 0;
    if (kParts == 1 && is_whole && is_unmasked(key, keys)) return true;
    return rows_fit_ && fit(key_rows, keys, p_.shape.head_dim) &&
           ((kParts == 1 && is_whole) || fit(value_rows, keys, p_.shape.value_dim));
  }

  // Whether every query of the block attends all of these keys. False if there is a bias.
  bool is_unmasked(int64_t key, int64_t keys) const {
    for (int64_t t = 0; t < tiles_; ++t) {
      if (!stages_[t].is_unmasked(key, keys)) return false;
    }
    return true;
  }

  void step(int64_t key, int64_t keys) {
    first_key_ = key;
    const Shape& shape = p_.shape;
    const Rows key_rows = rows_of(p_.key, key_head_, key);
    const Rows value_rows = rows_of(p_.value, value_head_, key);
    if (!tiles_compute(key_rows, value_rows, key, keys)) {
      constexpr int64_t kMost = BackwardScratch<Vector>::kQueries;
      for (int64_t i = 0; i < count_; i += kMost) {
        const Range queries = {first_ + i, first_ + min_of(i + kMost, count_)};
        BackwardBlock<Vector>(p_, fallback_, batch_, head_, queries).run({key, key + keys});
      }
      return;
    }
    pack_row_parts<V, kParts>(key_rows, keys, shape.head_dim, scratch_.stage, scratch_.keys,
                              scratch_.key_bytes);
    pack_row_parts<V, kParts>(value_rows, keys, shape.value_dim, scratch_.stage, scratch_.values,
                              scratch_.value_bytes);
    if (p_.grad_query.data != nullptr) {
      pack_transposed_parts<V, kParts>(key_rows, keys, shape.head_dim, scratch_.stage,
                                       scratch_.transposed_keys, scratch_.transposed_bytes);
    }
    for (int64_t t = 0; t < tiles_; ++t) tile_step(t, keys);
    if (p_.grad_value.data != nullptr) {
      add_key_rows(scratch_.left_weights, {scratch_.grad_pairs, scratch_.grad_pair_words},
                   shape.value_dim, keys, p_.grad_value, value_head_);
    }
    if (p_.grad_key.data != nullptr) {
      add_key_rows(scratch_.left_scores, {scratch_.query_pairs, scratch_.query_pair_words},
                   shape.head_dim, keys, p_.grad_key, key_head_);
    }
  }

  // Forms P and scale dS of a tile for the keys of a step, as operands, zero where it attends none,
  // and updates its dQ.
  void tile_step(int64_t t, int64_t keys) {
    const KeyRanges<V>& ranges = stages_[t].ranges();
    const int64_t padded = round_up(keys, kTileDepth);
    const int64_t last = max_of(0, min_of(ranges.key_end() - first_key_, keys));
    const int64_t first =
        min_of(max_of(0, ranges.key_begin() - first_key_), last) / kTileDepth * kTileDepth;
    const int64_t end = first < last ? round_up(last, kTileDepth) : first;
    TileScoreGradients<Vector, kParts> gradients(
        p_, scratch_, stages_[t],
        {t, tiles_, batch_, head_, first_ + t * kTileLanes, lanes_of(t), first_key_});
    gradients.clear(0, first);
    gradients.clear(end, padded);
    if (first == end) return;
    form_products(t, first, end - first);
    gradients.form(first, last, end - first);
    if (p_.grad_query.data == nullptr) return;
    const int64_t row_tiles = ceil_div(p_.shape.head_dim, kTileRows);
    tile_product<M, kParts, 2>(
        {scratch_.transposed_keys + first / kTileDepth * row_tiles * kTileBytes, kTileBytes,
         row_tiles * kTileBytes, scratch_.transposed_bytes},
        {scratch_.score_words, scratch_.score_part_words}, row_tiles * kTileRows,
        (end - first) / kTileDepth, scratch_.grad_queries + t * scratch_.grad_elements, kTileLanes,
        true);
  }

  // S^T = K Q^T and dP^T = V dO^T.
  void form_products(int64_t t, int64_t first, int64_t keys) {
    const int64_t row = depth_steps(p_.shape.head_dim) * kTileBytes;
    const int64_t value_row = depth_steps(p_.shape.value_dim) * kTileBytes;
    tile_product<M, kParts, 2>(
        {scratch_.keys + first / kTileRows * row, row, kTileBytes, scratch_.key_bytes},
        {scratch_.queries + t * kParts * scratch_.query_words, scratch_.query_words}, keys,
        row / kTileBytes, scratch_.weights, kStride, false);
    tile_product<M, kParts, 2>(
        {scratch_.values + first / kTileRows * value_row, value_row, kTileBytes,
         scratch_.value_bytes},
        {scratch_.grad_out + t * kParts * scratch_.grad_words, scratch_.grad_words}, keys,
        value_row / kTileBytes, scratch_.grad_scores, kStride, false);
  }

  // grad[key] += sum over queries of left[key][query] right[query], for dV and dK.
  void add_key_rows(const char* left, RightWords right, int64_t columns, int64_t keys,
                    const MutableRows& grad, int64_t head) {
    for (int64_t c = 0; c < columns; c += kTileLanes) {
      tile_product<M, kParts, 2>({left, tiles_ * kTileBytes, kTileBytes, scratch_.left_bytes},
                                 right, round_up(keys, kTileRows), tiles_, scratch_.sums,
                                 kTileLanes, false);
      right.data += tiles_ * kTileWords * kTileLanes;
      const int64_t width = min_of(kTileLanes, columns - c);
      for (int64_t j = 0; j < keys; ++j) {
        float* to = row_pointer<float>(grad, batch_, head, first_key_ + j) + c;
        const float* sum = scratch_.sums + j * kTileLanes;
        for_lanes<V>(width, [&](int64_t k, auto lanes) {
          lanes.store(to + k, V::add(V::load(sum + k), lanes.load(to + k)));
        });
      }
    }
  }

  void add_query_rows(int64_t t) {
    constexpr int W = V::kWidth;
    const float* from = scratch_.grad_queries + t * scratch_.grad_elements;
    const int64_t count = lanes_of(t), columns = p_.shape.head_dim;
    for (int64_t i = 0; i < count; i += W) {
      for (int64_t d = 0; d < columns; d += W) {
        Reg block[W];
        each<W>([&](int k) { block[k] = V::load(from + (d + k) * kTileLanes + i); });
        V::transpose(block);
        alignas(64) float rows[W][W];
        each<W>([&](int k) { V::store(rows[k], block[k]); });
        for (int k = 0; k < min_of(W, count - i); ++k) {
          float* to =
              row_pointer<float>(p_.grad_query, batch_, head_, first_ + t * kTileLanes + i + k) + d;
          for_lanes<V>(min_of(W, columns - d), [&](int64_t, auto lanes) {
            lanes.store(to, V::add(V::load(rows[k]), lanes.load(to)));
          });
        }
      }
    }
  }

  const BackwardParams& p_;
  const Scratch& scratch_;
  const BackwardScratch<Vector> fallback_;
  const int64_t batch_, head_, key_head_, value_head_;
  const int64_t first_, count_, tiles_;
  int64_t key_begin_ = p_.shape.keys, key_end_ = 0;
  int64_t first_key_ = 0;  // of the current step
  bool rows_fit_ = true;   // whether Q, dO and the statistics of the rows do
  ScoreStage<V> stages_[kTilesPerBlock];
};

template <class V>
WorkPlan tile_backward_plan(const BackwardParams& p) {
  return backward_plan<TileVec<V>>(p);
}

template <class V>
int64_t tile_backward_scratch_bytes(const BackwardParams& p) {
  return TileBackwardScratch<V>(p, nullptr).bytes;
}

template <class V, class M, int kParts>
void tile_backward(const BackwardParams& p, int64_t step, int64_t unit_begin, int64_t unit_end,
                   void* memory) {
  const typename M::Session session;
  const TileBackwardScratch<V> scratch(p, memory);
  backward_units<TileVec<V>>(
      p, step, unit_begin, unit_end,
      [&](int64_t batch, int64_t head, Range queries, Range keys, Stores stores) {
        clear_stored<float>(p, batch, head, queries, keys, stores);
        TileBackwardBlock<V, M, kParts>(p, scratch, batch, head, queries).run(keys);
      });
}

}  // namespace
}  // namespace flash
