#pragma once
// The backward of bfloat16 tensors on tile registers: the algorithm of backward.h with all five
// products as in tile_product.h.
//
//   product     sum                 left operand           right operand
//   scores      S^T[key][query]     K[key][d]              Q^T[d][query]
//   dP          dP^T[key][query]    V[key][d]              dO^T[d][query]
//   dQ          dQ^T[d][query]      K^T[d][key]            dS^T[key][query]
//   dV, dK      dV[key][d]          P^T, dS^T[key][query]  dO, Q[query][d]
//
// P and dS are formed in float, and rounded where they become operands. A block of queries whose
// masked keys could meet NaN or Inf is left to backward.h.

#include <cstdint>

#include "csrc/generic/backward_pass.h"
#include "csrc/generic/lanes.h"
#include "csrc/generic/tile_backward_scratch.h"
#include "csrc/generic/tile_packing.h"

namespace flash {
namespace {

/// Adds to dQ, dK, dV and dbias what a block of queries of one (batch, head) contributes.
template <class Vector, class M>
class TileBackwardBlock {
 public:
  using V = TileVec<Vector>;
  using Reg = typename V::Reg;
  using Scratch = TileBackwardScratch<Vector>;

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
        tiles_(ceil_div(count_, kTileLanes)),
        scale_(static_cast<float>(p.score.scale)),
        is_plain_(!changes_scores(p.score) && p.score.dropout == 0 && p.grad_bias == nullptr) {
    for (int64_t t = 0; t < tiles_; ++t) {
      prepare(t);
      const KeyRanges<V>& ranges = stages_[t].ranges();
      if (ranges.key_begin() == ranges.key_end()) continue;
      key_begin_ = min_of(key_begin_, ranges.key_begin());
      key_end_ = max_of(key_end_, ranges.key_end());
    }
    pack_pairs<V>(rows_of(p_.query, head_, first_), count_, p_.shape.head_dim,
                  scratch_.query_pairs);
    pack_pairs<V>(rows_of(p_.grad_out, head_, first_), count_, p_.shape.value_dim,
                  scratch_.grad_pairs);
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
  static constexpr int kVecs = V::kScoreVecs;
  static constexpr int64_t kStride = Scratch::kStride;

  int64_t lanes_of(int64_t t) const { return min_of(kTileLanes, count_ - t * kTileLanes); }

  BFloat16Rows rows_of(const ConstRows& rows, int64_t head, int64_t row) const {
    return {row_pointer<BFloat16>(rows, batch_, head, row), rows.strides.row};
  }

  // Packs Q and dO of a tile and computes row_max, 1 / row_sum and delta of each lane.
  void prepare(int64_t t) {
    const Shape& shape = p_.shape;
    const int64_t at = t * kTileLanes, first = first_ + at, count = lanes_of(t);
    pack_columns<V, 2>(rows_of(p_.query, head_, first), count, shape.head_dim, scratch_.padded,
                       scratch_.queries + t * scratch_.query_words);
    pack_columns<V, 2>(rows_of(p_.grad_out, head_, first), count, shape.value_dim, scratch_.padded,
                       scratch_.grad_out + t * scratch_.grad_words);
    const BFloat16Rows grad_rows = rows_of(p_.grad_out, head_, first);
    with_stored<float>(p_.out.data, p_.out_storage, [&](const auto* out) {
      out += row_offset(p_.out, batch_, head_, first);
      for (int64_t i = 0; i < kTileLanes; ++i, out += p_.out.strides.row) {
        scratch_.delta[at + i] =
            i < count ? row_dot(out, grad_rows.data + i * grad_rows.stride) : 0;
      }
    });
    if (can_mask(p_.score) || shape.keys == 0) {
      is_finite_ &= rows_are_finite<V>(rows_of(p_.query, head_, first), count, shape.head_dim) &&
                    rows_are_finite<V>(rows_of(p_.grad_out, head_, first), count, shape.value_dim);
    }
    stages_[t].start(p_.score, shape, batch_, head_, first, count, scratch_.bias);
    const int64_t row = (batch_ * shape.heads + head_) * shape.queries + first;
    is_finite_ &=
        read_statistics<V>(p_, stages_[t], row, count, kTileLanes, !is_finite_,
                           {scratch_.row_max + at, scratch_.inverse_sum + at, scratch_.delta + at});
  }

  // The dot product of a row of O and one of dO.
  template <class Stored>
  float row_dot(const Stored* out, const BFloat16* grad_out) const {
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
    const BFloat16Rows key_rows = rows_of(p_.key, key_head_, key);
    if (!is_unmasked(key, keys) &&
        !(is_finite_ && rows_are_finite<V>(key_rows, keys, shape.head_dim))) {
      constexpr int64_t kMost = BackwardScratch<Vector>::kQueries;
      for (int64_t i = 0; i < count_; i += kMost) {
        const Range queries = {first_ + i, first_ + min_of(i + kMost, count_)};
        BackwardBlock<Vector>(p_, fallback_, batch_, head_, queries).run({key, key + keys});
      }
      return;
    }
    pack_rows(key_rows, keys, shape.head_dim, scratch_.keys);
    pack_rows(rows_of(p_.value, value_head_, key), keys, shape.value_dim, scratch_.values);
    if (p_.grad_query.data != nullptr) {
      pack_transposed_rows<V>(key_rows, keys, shape.head_dim, scratch_.transposed_keys);
    }
    for (int64_t t = 0; t < tiles_; ++t) tile_step(t, keys);
    if (p_.grad_value.data != nullptr) {
      add_key_rows(scratch_.left_weights, scratch_.grad_pairs, shape.value_dim, keys, p_.grad_value,
                   value_head_);
    }
    if (p_.grad_key.data != nullptr) {
      add_key_rows(scratch_.left_scores, scratch_.query_pairs, shape.head_dim, keys, p_.grad_key,
                   key_head_);
    }
  }

  // Row j of a tile in P^T or dS^T of the block as a left operand: sixteen words, of lanes i and
  // i + 16.
  Word* left_row(char* left, int64_t j, int64_t t) const {
    return reinterpret_cast<Word*>(left +
                                   ((j / kTileRows * tiles_ + t) * kTileRows + j % kTileRows) * 64);
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
    clear_left(t, 0, first);
    clear_left(t, end, padded);
    if (first == end) return;
    form_products(t, first, end - first);
    if (is_plain_ && stages_[t].is_unmasked(first_key_ + first, end - first) && end <= last) {
      form_operands(t, first, end - first);
    } else {
      attend(t, first, last - first);
      fill_rows<V, kVecs>(last - first, end - first, V::zero(), scratch_.weights,
                          scratch_.grad_scores);
      pack_operands(t, first, end - first);
    }
    if (p_.grad_query.data == nullptr) return;
    const int64_t row_tiles = ceil_div(p_.shape.head_dim, kTileRows);
    tile_product<M, 2>({scratch_.transposed_keys + first / kTileDepth * row_tiles * kTileBytes,
                        kTileBytes, row_tiles * kTileBytes},
                       scratch_.score_words, row_tiles * kTileRows, (end - first) / kTileDepth,
                       scratch_.grad_queries + t * scratch_.grad_elements, kTileLanes, true);
  }

  void clear_left(int64_t t, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      std::memset(left_row(scratch_.left_weights, j, t), 0, 64);
      std::memset(left_row(scratch_.left_scores, j, t), 0, 64);
    }
  }

  // S^T = K Q^T and dP^T = V dO^T.
  void form_products(int64_t t, int64_t first, int64_t keys) {
    const int64_t row = depth_steps(p_.shape.head_dim) * kTileBytes;
    const int64_t value_row = depth_steps(p_.shape.value_dim) * kTileBytes;
    tile_product<M, 2>({scratch_.keys + first / kTileRows * row, row, kTileBytes},
                       scratch_.queries + t * scratch_.query_words, keys, row / kTileBytes,
                       scratch_.weights, kStride, false);
    tile_product<M, 2>({scratch_.values + first / kTileRows * value_row, value_row, kTileBytes},
                       scratch_.grad_out + t * scratch_.grad_words, keys, value_row / kTileBytes,
                       scratch_.grad_scores, kStride, false);
  }

  // P and dS where no option touches them, straight to operands.
  [[gnu::noinline]] void form_operands(int64_t t, int64_t first, int64_t keys) {
    constexpr int W = V::kWidth;
    constexpr int kKeys = 4;  // with the vectors of a row, enough exponentials to hide latency
    constexpr int kRegs = kKeys * 2;
    constexpr float kLog2 = ExpConstants<float, V::kSplitsDown>().log2_e;
    const int64_t at = t * kTileLanes;
    const Reg log2_e = V::broadcast(kLog2), scale = V::broadcast(scale_);
    for (int v = 0; v < kVecs / 2; ++v) {
      // Vectors v and v + kVecs / 2 hold lanes i and i + 16.
      const int64_t lane[2] = {v * W, kTileRows + v * W};
      Reg minus_max[2], inverse[2], delta[2];
      each<2>([&](int h) {
        minus_max[h] = V::sub(V::zero(), V::load(scratch_.row_max + at + lane[h]));
        inverse[h] = V::load(scratch_.inverse_sum + at + lane[h]);
        delta[h] = V::load(scratch_.delta + at + lane[h]);
      });
      for (int64_t j = 0; j < keys; j += kKeys) {
        const float* scores = scratch_.weights + j * kStride;
        const float* grads = scratch_.grad_scores + j * kStride;
        Reg weight[kRegs], grad[kRegs];
        each<kRegs>([&](int i) {
          const Reg score = V::load(scores + i / 2 * kStride + lane[i % 2]);
          weight[i] = V::mul(V::fma(score, scale, minus_max[i % 2]), log2_e);
        });
        exp2<V>(weight);
        each<kRegs>([&](int i) {
          weight[i] = V::mul(weight[i], inverse[i % 2]);
          grad[i] = V::mul(V::mul(weight[i], scale),
                           V::sub(V::load(grads + i / 2 * kStride + lane[i % 2]), delta[i % 2]));
        });
        each<kKeys>([&](int k) {
          V::store_words(left_row(scratch_.left_weights, first + j + k, t) + v * W,
                         V::pair(weight[2 * k], weight[2 * k + 1]));
          V::store_words(left_row(scratch_.left_scores, first + j + k, t) + v * W,
                         V::pair(grad[2 * k], grad[2 * k + 1]));
        });
        each<kKeys>([&](int i) {
          const int k = i / 2 * 4, h = i % 2;
          V::store_words(scratch_.score_words + (j / 2 + i / 2) * kTileLanes + lane[h],
                         V::pair(grad[k + h], grad[k + 2 + h]));
        });
      }
    }
  }

  // The same from P and dS in float.
  void pack_operands(int64_t t, int64_t first, int64_t keys) {
    constexpr int W = V::kWidth;
    const Reg scale = V::broadcast(scale_);
    for (int64_t j = 0; j < keys; ++j) {
      const float* weights = scratch_.weights + j * kStride;
      const float* grads = scratch_.grad_scores + j * kStride;
      const auto pair = [&](const float* row, int64_t i, Reg factor) {
        return V::pair(V::mul(V::load(row + i), factor),
                       V::mul(V::load(row + kTileRows + i), factor));
      };
      for (int64_t i = 0; i < kTileRows; i += W) {
        V::store_words(left_row(scratch_.left_weights, first + j, t) + i,
                       pair(weights, i, V::broadcast(1)));
        V::store_words(left_row(scratch_.left_scores, first + j, t) + i, pair(grads, i, scale));
      }
      if (j % 2 != 0) continue;
      for (int64_t i = 0; i < kTileLanes; i += W) {
        V::store_words(scratch_.score_words + j / 2 * kTileLanes + i,
                       V::pair(V::mul(V::load(grads + i), scale),
                               V::mul(V::load(grads + kStride + i), scale)));
      }
    }
  }

  // Turns S into P and dP into dS, in float, for the keys that the tile attends.
  void attend(int64_t t, int64_t first, int64_t keys) {
    ScoreStage<V>& stage = stages_[t];
    const int64_t key = first_key_ + first, at = t * kTileLanes;
    float *weights = scratch_.weights, *grad_scores = scratch_.grad_scores;
    stage.template start_block<kVecs>(key, keys);
    stage.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool limited) {
          const int64_t offset = j * kStride + dead * V::kWidth;
          form_weights<kLive>(stage, at + dead * V::kWidth, key, j, n, limited, weights + offset,
                              scratch_.cap_derivative + offset);
          for (int v = 0; v < dead; ++v) {
            fill_rows<V, 1>(j, j + n, V::zero(), weights + v * V::kWidth,
                            grad_scores + v * V::kWidth);
          }
        });
    if (stage.has_dropout()) stage.template mark_dropped<kVecs>(weights, kStride, key, keys);
    stage.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool limited) {
          const int64_t offset = j * kStride + dead * V::kWidth;
          form_grad_scores<kLive>(stage, at + dead * V::kWidth, n, limited, weights + offset,
                                  grad_scores + offset);
        });
    const int64_t count = lanes_of(t);
    if (p_.grad_bias != nullptr) {
      const BiasGradient<V> bias(p_, batch_, head_);
      bias.add(first_ + at, count, key, keys, grad_scores, kStride);
    }
    if (p_.grad_slope_rows != nullptr) {
      stage.template add_slope_gradients<kVecs>(
          grad_scores, kStride, key, keys,
          static_cast<float*>(p_.grad_slope_rows) +
              (batch_ * p_.shape.heads + head_) * p_.shape.queries + first_ + at);
    }
    // The gradients above are of terms added after the cap, so only what follows passes through it.
    if (p_.score.softcap > 0) {
      stage.ranges().template for_segments<kVecs>(
          key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool) {
            const int64_t offset = j * kStride + dead * V::kWidth;
            multiply_rows<V, kLive>(grad_scores + offset, scratch_.cap_derivative + offset, n);
          });
    }
  }

  template <int kLive>
  void form_weights(const ScoreStage<V>& stage, int64_t at, int64_t key, int64_t j, int64_t keys,
                    bool limited, float* weights, float* cap_derivative) {
    const Reg scale = V::broadcast(scale_);
    for (int64_t i = 0; i < keys; ++i) {
      each<kLive>([&](int v) {
        float* score = weights + i * kStride + v * V::kWidth;
        V::store(score, V::mul(V::load(score), scale));
      });
    }
    const float *row_max = scratch_.row_max + at, *inverse_sum = scratch_.inverse_sum + at;
    if (!limited && !changes_scores(p_.score)) {
      weights_from_scores<V, kLive, false>(row_max, inverse_sum, keys, weights);
      return;
    }
    Reg unused[kLive];
    for (int v = 0; v < kLive; ++v) unused[v] = V::zero();
    stage.template apply<kVecs, kLive>(weights, kStride, key, j, keys, limited, unused,
                                       cap_derivative);
    weights_from_scores<V, kLive, true>(row_max, inverse_sum, keys, weights);
  }

  template <int kLive>
  void form_grad_scores(const ScoreStage<V>& stage, int64_t at, int64_t keys, bool limited,
                        float* weights, float* grad_scores) {
    const Reg keep = V::broadcast(static_cast<float>(dropout_keep_scale(p_.score.dropout)));
    const auto form = [&]<bool kMasked, bool kDropout>() {
      for (int v = 0; v < kLive; ++v) {
        const Reg delta = V::load(scratch_.delta + at + v * V::kWidth);
        for (int64_t j = 0; j < keys; ++j) {
          const int64_t offset = j * kStride + v * V::kWidth;
          Reg grad = V::load(grad_scores + offset);
          if constexpr (kDropout) grad = V::mul(grad, keep);
          V::store(grad_scores + offset,
                   score_gradient<V, kMasked, kDropout>(grad, delta, keep, weights + offset));
        }
      }
    };
    if (stage.has_dropout()) {
      form.template operator()<true, true>();
    } else if (limited || p_.score.bias_kind != BiasKind::kNone) {
      form.template operator()<true, false>();
    } else {
      form.template operator()<false, false>();
    }
  }

  // grad[key] += sum over queries of left[key][query] right[query], for dV and dK.
  void add_key_rows(const char* left, const Word* right, int64_t columns, int64_t keys,
                    const MutableRows& grad, int64_t head) {
    for (int64_t c = 0; c < columns; c += kTileLanes) {
      tile_product<M, 2>({left, tiles_ * kTileBytes, kTileBytes}, right, round_up(keys, kTileRows),
                         tiles_, scratch_.sums, kTileLanes, false);
      right += tiles_ * kTileWords * kTileLanes;
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
  const float scale_;
  const bool is_plain_;  // whether no option but a window touches the scores
  int64_t key_begin_ = p_.shape.keys, key_end_ = 0;
  int64_t first_key_ = 0;  // of the current step
  bool is_finite_ = true;  // whether Q, dO and the statistics of the rows are
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

template <class V, class M>
void tile_backward(const BackwardParams& p, int64_t step, int64_t unit_begin, int64_t unit_end,
                   void* memory) {
  const typename M::Session session;
  const TileBackwardScratch<V> scratch(p, memory);
  backward_units<TileVec<V>>(
      p, step, unit_begin, unit_end,
      [&](int64_t batch, int64_t head, Range queries, Range keys, Stores stores) {
        clear_stored<float>(p, batch, head, queries, keys, stores);
        TileBackwardBlock<V, M>(p, scratch, batch, head, queries).run(keys);
      });
}

}  // namespace
}  // namespace flash
