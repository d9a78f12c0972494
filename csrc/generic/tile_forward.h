#pragma once
// The forward of bfloat16 tensors, or of float in parts, on tile registers: the algorithm of
// forward.h with both products as in tile_product.h.
//
//   in    Q, K, V packed as operands, each once per tile or block
//   tmp   S^T[block][lanes] in float, then P^T as words of bfloat16 parts
//   out   O^T[Dv][lanes] in float, transposed and rounded at the end; row_max and row_sum
//
// What happens to a score is ScoreStage's, as everywhere. Of float elements, the product of a tile
// and a block that rows_fit_parts refuses is formed in float, with the micro-kernel's results for
// NaN and Inf.

#include <cstdint>
#include <limits>

#include "csrc/generic/exp.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/tile_forward_scratch.h"

namespace flash {
namespace {

/// One tile: queries first … first + count - 1 of one (batch, head), in kHalves * kTileRows lanes.
/// All methods of a tile must be called with the same kHalves.
template <class Vector, class M, int kParts>
class TileForward {
 public:
  using Block = PackedBlock<Vector, kParts>;
  using V = TileVec<Vector>;
  using Reg = typename V::Reg;

  template <int kHalves>
  void start(const ForwardParams& p, int64_t batch, int64_t head, int64_t first, int64_t count,
             const TileForwardScratch& scratch, Block& block, int64_t slot) {
    const Shape& shape = p.shape;
    p_ = &p;
    count_ = count;
    block_ = &block;
    scratch_ = &scratch;
    first_out_ = row_offset(p.out, batch, head, first);
    const int64_t at = (batch * shape.heads + head) * shape.queries + first;
    row_max_ = static_cast<float*>(p.row_max) + at;
    row_sum_ = static_cast<float*>(p.row_sum) + at;
    queries_ = scratch.queries + slot * kParts * scratch.query_words;
    out_ = scratch.out + slot * scratch.out_elements;
    rows_ = {row_pointer<Element<kParts>>(p.query, batch, head, first), p.query.strides.row};
    const float scale = static_cast<float>(p.score.scale);
    for_parts<V, kParts>(rows_, count, shape.head_dim, scale, scratch.stage,
                         [&](int part, int64_t, RowView<BFloat16> rows, int64_t) {
                           pack_columns<V, kHalves>(rows, count, shape.head_dim, scratch.padded,
                                                    queries_ + part * scratch.query_words);
                         });
    if constexpr (kParts > 1) queries_fit_ = rows_fit_parts<V>(rows_, count, shape.head_dim);
    stage_.start(p.score, shape, batch, head, first, count, scratch.bias);
    next_ = stage_.ranges().key_begin();
    const float sink = stage_.sink();
    const bool has_sink = !(sink == -kInf);
    // A factor of bfloat16 elements would be rounded, so their scores are scaled instead; or only
    // the exponents, if the scale is positive and nothing else uses the scores.
    const bool scales_exponents =
        kParts == 1 && !changes_scores(p.score) && !has_sink && scale > 0 && scale < kInf;
    scales_scores_ = kParts == 1 && !scales_exponents;
    exponent_ = scales_exponents ? scale : 1;
    for (int v = 0; v < vecs(kHalves); ++v) {
      base_[v] = max_[v] = V::broadcast(sink);
      sum_[v] = V::broadcast(has_sink ? 1.0f : 0.0f);
    }
  }

  /// Whether keys are left, and the block that contains the next one.
  bool has_keys() const { return next_ < stage_.ranges().key_end(); }
  int64_t next_block() const { return block_->begin_of(next_); }

  /// Processes the next block of keys.
  template <int kHalves>
  void step() {
    block_->seek(next_);
    const int64_t block = next_block();
    const int64_t key = block + (next_ - block) / kTileDepth * kTileDepth;
    const bool is_first = next_ == stage_.ranges().key_begin();
    next_ = min_of(block + block_->size(), stage_.ranges().key_end());
    const int64_t keys = next_ - key;
    form_scores<kHalves>(key, keys);
    raise_base<kHalves>(!is_first);
    add_values<kHalves>(key, keys, !is_first);
  }

  /// Must be called after the last step.
  template <int kHalves>
  void finish() {
    constexpr int64_t kLanes = kHalves * kTileRows;
    alignas(64) float factor[kLanes], top[kLanes], sum[kLanes];
    for (int v = 0; v < vecs(kHalves); ++v) {
      V::store(top + v * V::kWidth, V::mul(max_[v], V::broadcast(exponent_)));
      V::store(sum + v * V::kWidth, sum_[v]);
    }
    const float keep = static_cast<float>(dropout_keep_scale(p_->score.dropout));
    for (int64_t i = 0; i < kLanes; ++i) factor[i] = i < count_ ? finish_row(i, sum[i], keep) : 0;
    // The sums are relative to the base so far.
    Reg drop[vecs(kHalves)];
    for (int v = 0; v < vecs(kHalves); ++v) {
      drop[v] = V::mul(V::sub(base_[v], finite_base(max_[v])), V::broadcast(exponent_));
    }
    exp<V>(drop);
    for (int v = 0; v < vecs(kHalves); ++v) {
      V::store(sum + v * V::kWidth, V::mul(sum_[v], drop[v]));
    }
    for (int64_t i = 0; i < count_; ++i) {
      row_max_[i] = top[i];
      if (row_sum_[i] > 0) row_sum_[i] = sum[i];
    }
    if (stage_.ranges().key_begin() == stage_.ranges().key_end()) {
      std::memset(out_, 0, scratch_->out_elements * sizeof(float));
    }
    with_stored<float>(p_->out.data, p_->out_storage,
                       [&](auto* out) { store_out<kHalves>(out + first_out_, factor); });
  }

 private:
  static constexpr float kInf = std::numeric_limits<float>::infinity();
  static constexpr int vecs(int halves) { return halves * static_cast<int>(kTileRows) / V::kWidth; }

  // Forms the scores of a block, -inf for masked ones and past its end, and raises `max_`. The
  // scale that the exponents have is still missing.
  template <int kHalves>
  void form_scores(int64_t key, int64_t keys) {
    constexpr int kVecs = vecs(kHalves);
    constexpr int64_t kLanes = kHalves * kTileRows;
    float* scores = scratch_->scores;
    const int64_t padded = round_up(keys, kTileDepth);
    if (kParts == 1 || (queries_fit_ && block_->keys_fit())) {
      tile_product<M, kParts, kHalves>(block_->keys(key), {queries_, scratch_->query_words}, padded,
                                       depth_steps(p_->shape.head_dim), scores, kLanes, false);
    } else {
      form_float_scores<kHalves>(key, keys);
    }
    if (scales_scores_) scale_rows(scores, padded * kLanes);
    stage_.template start_block<kVecs>(key, keys);
    stage_.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool limited) {
          float* row = scores + j * kLanes;
          for (int64_t i = 0; i < n; ++i) {
            for (int v = 0; v < dead; ++v) {
              V::store(row + i * kLanes + v * V::kWidth, V::broadcast(-kInf));
            }
          }
          row += dead * V::kWidth;
          if (changes_scores(p_->score) || limited) {
            stage_.template apply<kVecs, kLive>(row, kLanes, key, j, n, limited, max_ + dead);
          } else {
            raise_maximum<kVecs>(row, n, max_);
          }
        });
    for (int64_t i = keys * kLanes; i < padded * kLanes; ++i) scores[i] = -kInf;
  }

  // The scores of a block in float.
  template <int kHalves>
  [[gnu::noinline]] void form_float_scores(int64_t key, int64_t keys) {
    if constexpr (kParts > 1) {
      constexpr int64_t kLanes = kHalves * kTileRows;
      const int64_t depth = p_->shape.head_dim;
      pack_transposed<V, kLanes>(rows_.data, rows_.stride, count_, depth,
                                 static_cast<float>(p_->score.scale), scratch_->columns);
      for (int64_t i = 0; i < kLanes; i += kTileRows) {
        raw_scores<Vector, vecs(1)>(block_->key(key), block_->key_stride(), keys, depth,
                                    {scratch_->columns + i, kLanes}, scratch_->scores + i, kLanes);
      }
    }
  }

  void scale_rows(float* scores, int64_t count) const {
    const Reg scale = V::broadcast(static_cast<float>(p_->score.scale));
    for (int64_t i = 0; i < count; i += V::kWidth) {
      V::store(scores + i, V::mul(V::load(scores + i), scale));
    }
  }

  template <int kVecs>
  static void raise_maximum(const float* row, int64_t keys, Reg* top) {
    constexpr int64_t kLanes = kVecs * V::kWidth;
    Reg even[kVecs], odd[kVecs];
    each<kVecs>([&](int v) { even[v] = odd[v] = top[v]; });
    int64_t j = 0;
    for (; j + 2 <= keys; j += 2, row += 2 * kLanes) {
      each<kVecs>([&](int v) {
        even[v] = V::max(V::load(row + v * V::kWidth), even[v]);
        odd[v] = V::max(V::load(row + kLanes + v * V::kWidth), odd[v]);
      });
    }
    if (j < keys) {
      each<kVecs>([&](int v) { even[v] = V::max(V::load(row + v * V::kWidth), even[v]); });
    }
    each<kVecs>([&](int v) { top[v] = V::max(even[v], odd[v]); });
  }

  // -inf - (-inf) is NaN, so a lane without a key so far subtracts 0 instead.
  static Reg finite_base(Reg max) { return V::if_equal(max, V::broadcast(-kInf), V::zero(), max); }

  // Weights are relative to a base that follows the maximum only once it is e^5 times too small:
  // then sums and output are rescaled, which would take a tenth of the time if done every step.
  // Each lane has its own base, so that the bits of a row do not depend on the rows beside it.
  template <int kHalves>
  void raise_base(bool has_out) {
    constexpr int kVecs = vecs(kHalves);
    constexpr float kMostGrowth = 5;
    const Reg limit = V::broadcast(kMostGrowth / exponent_);
    bool grows = !has_out;
    for (int v = 0; v < kVecs; ++v) grows |= V::any_less(V::add(base_[v], limit), max_[v]);
    if (!grows) return;
    Reg factor[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      const Reg base =
          has_out ? V::if_less(V::add(base_[v], limit), max_[v], max_[v], base_[v]) : max_[v];
      factor[v] = V::mul(V::sub(base_[v], finite_base(base)), V::broadcast(exponent_));
      base_[v] = base;
    }
    exp<V>(factor);
    each<kVecs>([&](int v) { sum_[v] = V::mul(sum_[v], factor[v]); });
    if (!has_out) return;
    float* row = out_;
    for (int64_t d = 0; d < round_up(p_->shape.value_dim, kTileRows); ++d) {
      each<kVecs>([&](int v) {
        V::store(row + v * V::kWidth, V::mul(V::load(row + v * V::kWidth), factor[v]));
      });
      row += kVecs * V::kWidth;
    }
  }

  // Turns the scores of a block into weights relative to `base_` and adds P V to the output.
  template <int kHalves>
  void add_values(int64_t key, int64_t keys, bool has_out) {
    constexpr int kVecs = vecs(kHalves);
    constexpr int64_t kLanes = kHalves * kTileRows;
    const int64_t padded = round_up(keys, kTileDepth);
    const bool skips = !block_->values_fit(!stage_.is_unmasked(key, keys));
    float* scores = scratch_->scores;
    if (!skips && !stage_.has_dropout()) {
      weigh<kHalves, true>(padded);
    } else {
      weigh<kHalves, false>(padded);
      if (stage_.has_dropout()) stage_.template drop<kVecs>(scores, kLanes, key, keys);
      if (skips) return add_unmasked_values<kHalves>(key, keys, has_out);
      pack_weights<kHalves>(padded);
    }
    tile_product<M, kParts, kHalves>(
        block_->values(key), {scratch_->weights, scratch_->weight_words},
        round_up(p_->shape.value_dim, kTileRows), padded / kTileDepth, out_, kLanes, has_out);
  }

  // Weights in float replace the scores; with kPack, words of their parts go to the scratch
  // instead.
  template <int kHalves, bool kPack>
  [[gnu::noinline]] void weigh(int64_t keys) {
    constexpr int64_t kLanes = kHalves * kTileRows;
    constexpr int kRows = 8;
    const int64_t part = scratch_->weight_words;
    const Reg exponent = V::broadcast(exponent_ * ExpConstants<float, V::kSplitsDown>().log2_e);
    for (int v = 0; v < vecs(kHalves); ++v) {
      float* from = scratch_->scores + v * V::kWidth;
      Word* to = scratch_->weights + v * V::kWidth;
      const Reg base = finite_base(base_[v]);
      Reg sum = V::zero();
      for (int64_t j = 0; j < keys; j += kRows, from += kRows * kLanes) {
        Reg weight[kRows];
        each<kRows>(
            [&](int i) { weight[i] = V::mul(V::sub(V::load(from + i * kLanes), base), exponent); });
        exp2<V>(weight);
        each<kRows>([&](int i) { sum = V::add(sum, weight[i]); });
        if constexpr (kPack) {
          each<kRows / 2>([&](int i) {
            store_pair<V, kParts>(to + i * kLanes, part, weight[2 * i], weight[2 * i + 1]);
          });
          to += kRows / 2 * kLanes;
        } else {
          each<kRows>([&](int i) { V::store(from + i * kLanes, weight[i]); });
        }
      }
      sum_[v] = V::add(sum_[v], sum);
    }
  }

  template <int kHalves>
  void pack_weights(int64_t keys) {
    constexpr int64_t kLanes = kHalves * kTileRows;
    const float* from = scratch_->scores;
    Word* to = scratch_->weights;
    for (int64_t j = 0; j < keys; j += 2, from += 2 * kLanes, to += kLanes) {
      for (int64_t i = 0; i < kLanes; i += V::kWidth) {
        store_pair<V, kParts>(to + i, scratch_->weight_words, V::load(from + i),
                              V::load(from + kLanes + i));
      }
    }
  }

  // P V in float, without the terms of masked keys, whose values may be NaN or Inf.
  template <int kHalves>
  [[gnu::noinline]] void add_unmasked_values(int64_t key, int64_t keys, bool has_out) {
    constexpr int kVecs = vecs(kHalves);
    constexpr int64_t kLanes = kHalves * kTileRows;
    stage_.template mark_masked<kVecs>(scratch_->scores, kLanes, key, keys);
    if (!has_out) std::memset(out_, 0, scratch_->out_elements * sizeof(float));
    for (int64_t d = 0; d < p_->shape.value_dim; ++d) {
      Reg sum[kVecs];
      float* row = out_ + d * kLanes;
      each<kVecs>([&](int v) { sum[v] = V::load(row + v * V::kWidth); });
      for (int64_t j = 0; j < keys; ++j) {
        const Reg value = V::broadcast(to_float(block_->value(key + j)[d]));
        const float* weight = scratch_->scores + j * kLanes;
        each<kVecs>([&](int v) {
          sum[v] = V::fma_unless_minus_zero(V::load(weight + v * V::kWidth), value, sum[v]);
        });
      }
      each<kVecs>([&](int v) { V::store(row + v * V::kWidth, sum[v]); });
    }
  }

  // Stores the row sum, and returns the factor of the output. A row without a positive weight is 0
  // if it attends no key. If it attends keys, all of its scores are -inf, from an Inf or an
  // overflow, and its softmax is NaN.
  float finish_row(int64_t i, float sum, float keep) {
    const bool is_nan = sum == 0 && !p_->is_part && stage_.attends_any(i);
    row_sum_[i] = is_nan ? std::numeric_limits<float>::quiet_NaN() : sum;
    return sum == 0 ? (is_nan ? row_sum_[i] : 0) : keep / sum;
  }

  template <int kHalves, class Stored>
  void store_out(Stored* out, const float* factor) {
    constexpr int64_t kLanes = kHalves * kTileRows;
    constexpr int W = V::kWidth;
    const int64_t columns = p_->shape.value_dim;
    for (int64_t i = 0; i < count_; i += W) {
      const Reg scale = V::load(factor + i);
      for (int64_t d = 0; d < columns; d += W) {
        Reg block[W];
        each<W>([&](int k) { block[k] = V::mul(V::load(out_ + (d + k) * kLanes + i), scale); });
        V::transpose(block);
        for (int k = 0; k < min_of(W, count_ - i); ++k) {
          Stored* to = out + (i + k) * p_->out.strides.row + d;
          if (d + W <= columns) {
            V::store(to, block[k]);
          } else {
            store_first<V>(to, block[k], columns - d);
          }
        }
      }
    }
  }

  static constexpr int kMaxVecs = V::kScoreVecs;

  const ForwardParams* p_;
  const TileForwardScratch* scratch_;
  Block* block_;
  int64_t count_;
  int64_t next_;       // the first key of the next step
  int64_t first_out_;  // the offset of the first output row in p.out, in elements
  float* row_max_;
  float* row_sum_;
  RowView<Element<kParts>> rows_;  // of Q
  Word* queries_;
  float* out_;
  bool queries_fit_ = false;  // whether tiles may compute the scores of float queries
  bool scales_scores_;        // whether scores are scaled before their maximum is taken
  float exponent_;            // multiplies differences of scores
  ScoreStage<V> stage_;
  Reg max_[kMaxVecs];   // the largest score so far
  Reg base_[kMaxVecs];  // to which weights and sums are relative
  Reg sum_[kMaxVecs];
};

}  // namespace
}  // namespace flash
