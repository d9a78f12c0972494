#pragma once
// P and dS of one tile of queries on tile registers: from the products of tile_backward.h to the
// operands of the next ones.

#include <cstdint>

#include "csrc/generic/bias_gradient.h"
#include "csrc/generic/score_gradient.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/tile_backward_scratch.h"
#include "csrc/generic/tile_parts.h"

namespace flash {
namespace {

/// A tile of queries in a block of the backward, and the keys of a step.
struct TileOfBlock {
  int64_t tile, tiles;  ///< its index, and the number of tiles of the block
  int64_t batch, head;
  int64_t first, count;  ///< its queries
  int64_t first_key;     ///< the first key of the step
};

/// Turns S and dP of a tile, for keys `first` … `first + keys - 1` of a step, into operands. P and
/// dS are formed in float, and rounded or split where they become words.
template <class Vector, int kParts>
class TileScoreGradients {
 public:
  using V = TileVec<Vector>;
  using Reg = typename V::Reg;
  using Scratch = TileBackwardScratch<Vector>;

  TileScoreGradients(const BackwardParams& p, const Scratch& scratch, ScoreStage<V>& stage,
                     const TileOfBlock& tile)
      : p_(p),
        scratch_(scratch),
        stage_(stage),
        tile_(tile),
        at_(tile.tile * kTileLanes),
        scale_(static_cast<float>(p.score.scale)),
        score_scale_(kParts == 1 ? scale_ : 1) {}

  /// Zeros of P and dS for keys that the tile does not attend.
  void clear(int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      for (int p = 0; p < kParts; ++p) {
        std::memset(left_row(scratch_.left_weights, j) + p * part(), 0, 64);
        std::memset(left_row(scratch_.left_scores, j) + p * part(), 0, 64);
      }
    }
  }

  /// Of keys up to `last`, the end of those that the tile attends.
  void form(int64_t first, int64_t last, int64_t keys) {
    const bool is_plain =
        !changes_scores(p_.score) && p_.score.dropout == 0 && p_.grad_bias == nullptr;
    if (is_plain && stage_.is_unmasked(tile_.first_key + first, keys) && first + keys <= last) {
      form_operands(first, keys);
      return;
    }
    attend(first, last - first);
    fill_rows<V, kVecs>(last - first, keys, V::zero(), scratch_.weights, scratch_.grad_scores);
    pack_operands(first, keys);
  }

 private:
  static constexpr int kVecs = V::kScoreVecs;
  static constexpr int64_t kStride = Scratch::kStride;

  // Words from one part of a left operand to the next.
  int64_t part() const { return scratch_.left_bytes / static_cast<int64_t>(sizeof(Word)); }

  // Row j of a tile in P^T or dS^T of the block as a left operand: sixteen words, of lanes i and
  // i + 16.
  Word* left_row(char* left, int64_t j) const {
    return reinterpret_cast<Word*>(
        left + ((j / kTileRows * tile_.tiles + tile_.tile) * kTileRows + j % kTileRows) * 64);
  }

  // P and dS where no option touches them, straight to operands.
  [[gnu::noinline]] void form_operands(int64_t first, int64_t keys) {
    constexpr int W = V::kWidth;
    constexpr int kKeys = 4;  // with the vectors of a row, enough exponentials to hide latency
    constexpr int kRegs = kKeys * 2;
    constexpr float kLog2 = ExpConstants<float, V::kSplitsDown>().log2_e;
    const int64_t left_part = part(), right_part = scratch_.score_part_words;
    const Reg log2_e = V::broadcast(kLog2), scale = V::broadcast(scale_);
    const Reg score_scale = V::broadcast(score_scale_);
    for (int v = 0; v < kVecs / 2; ++v) {
      // Vectors v and v + kVecs / 2 hold lanes i and i + 16.
      const int64_t lane[2] = {v * W, kTileRows + v * W};
      Reg minus_max[2], inverse[2], delta[2];
      each<2>([&](int h) {
        minus_max[h] = V::sub(V::zero(), V::load(scratch_.row_max + at_ + lane[h]));
        inverse[h] = V::load(scratch_.inverse_sum + at_ + lane[h]);
        delta[h] = V::load(scratch_.delta + at_ + lane[h]);
      });
      for (int64_t j = 0; j < keys; j += kKeys) {
        const float* scores = scratch_.weights + j * kStride;
        const float* grads = scratch_.grad_scores + j * kStride;
        Reg weight[kRegs], grad[kRegs];
        each<kRegs>([&](int i) {
          const Reg score = V::load(scores + i / 2 * kStride + lane[i % 2]);
          weight[i] = V::mul(V::fma(score, score_scale, minus_max[i % 2]), log2_e);
        });
        exp2<V>(weight);
        each<kRegs>([&](int i) {
          weight[i] = V::mul(weight[i], inverse[i % 2]);
          grad[i] = V::mul(V::mul(weight[i], scale),
                           V::sub(V::load(grads + i / 2 * kStride + lane[i % 2]), delta[i % 2]));
        });
        each<kKeys>([&](int k) {
          store_pair<V, kParts>(left_row(scratch_.left_weights, first + j + k) + v * W, left_part,
                                weight[2 * k], weight[2 * k + 1]);
          store_pair<V, kParts>(left_row(scratch_.left_scores, first + j + k) + v * W, left_part,
                                grad[2 * k], grad[2 * k + 1]);
        });
        each<kKeys>([&](int i) {
          const int k = i / 2 * 4, h = i % 2;
          store_pair<V, kParts>(scratch_.score_words + (j / 2 + i / 2) * kTileLanes + lane[h],
                                right_part, grad[k + h], grad[k + 2 + h]);
        });
      }
    }
  }

  // The same from P and dS in float.
  void pack_operands(int64_t first, int64_t keys) {
    constexpr int W = V::kWidth;
    const int64_t left_part = part();
    const Reg scale = V::broadcast(scale_);
    for (int64_t j = 0; j < keys; ++j) {
      const float* weights = scratch_.weights + j * kStride;
      const float* grads = scratch_.grad_scores + j * kStride;
      for (int64_t i = 0; i < kTileRows; i += W) {
        store_pair<V, kParts>(left_row(scratch_.left_weights, first + j) + i, left_part,
                              V::load(weights + i), V::load(weights + kTileRows + i));
        store_pair<V, kParts>(left_row(scratch_.left_scores, first + j) + i, left_part,
                              V::mul(V::load(grads + i), scale),
                              V::mul(V::load(grads + kTileRows + i), scale));
      }
      if (j % 2 != 0) continue;
      for (int64_t i = 0; i < kTileLanes; i += W) {
        store_pair<V, kParts>(scratch_.score_words + j / 2 * kTileLanes + i,
                              scratch_.score_part_words, V::mul(V::load(grads + i), scale),
                              V::mul(V::load(grads + kStride + i), scale));
      }
    }
  }

  // Turns S into P and dP into dS, in float, for the keys that the tile attends.
  void attend(int64_t first, int64_t keys) {
    const int64_t key = tile_.first_key + first;
    float *weights = scratch_.weights, *grad_scores = scratch_.grad_scores;
    stage_.template start_block<kVecs>(key, keys);
    stage_.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool limited) {
          const int64_t offset = j * kStride + dead * V::kWidth;
          form_weights<kLive>(dead * V::kWidth, key, j, n, limited, weights + offset,
                              scratch_.cap_derivative + offset);
          for (int v = 0; v < dead; ++v) {
            fill_rows<V, 1>(j, j + n, V::zero(), weights + v * V::kWidth,
                            grad_scores + v * V::kWidth);
          }
        });
    if (stage_.has_dropout()) stage_.template mark_dropped<kVecs>(weights, kStride, key, keys);
    stage_.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool limited) {
          const int64_t offset = j * kStride + dead * V::kWidth;
          form_grad_scores<kLive>(dead * V::kWidth, n, limited, weights + offset,
                                  grad_scores + offset);
        });
    if (p_.grad_bias != nullptr) {
      const BiasGradient<V> bias(p_, tile_.batch, tile_.head);
      bias.add(tile_.first, tile_.count, key, keys, grad_scores, kStride);
    }
    if (p_.grad_slope_rows != nullptr) {
      stage_.template add_slope_gradients<kVecs>(
          grad_scores, kStride, key, keys,
          static_cast<float*>(p_.grad_slope_rows) +
              (tile_.batch * p_.shape.heads + tile_.head) * p_.shape.queries + tile_.first);
    }
    // The gradients above are of terms added after the cap, so only what follows passes through it.
    if (p_.score.softcap > 0) {
      stage_.ranges().template for_segments<kVecs>(
          key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool) {
            const int64_t offset = j * kStride + dead * V::kWidth;
            multiply_rows<V, kLive>(grad_scores + offset, scratch_.cap_derivative + offset, n);
          });
    }
  }

  template <int kLive>
  void form_weights(int64_t lane, int64_t key, int64_t j, int64_t keys, bool limited,
                    float* weights, float* cap_derivative) {
    if (score_scale_ != 1) {
      const Reg scale = V::broadcast(score_scale_);
      for (int64_t i = 0; i < keys; ++i) {
        each<kLive>([&](int v) {
          float* score = weights + i * kStride + v * V::kWidth;
          V::store(score, V::mul(V::load(score), scale));
        });
      }
    }
    const float *row_max = scratch_.row_max + at_ + lane,
                *inverse_sum = scratch_.inverse_sum + at_ + lane;
    if (!limited && !changes_scores(p_.score)) {
      weights_from_scores<V, kLive, false>(row_max, inverse_sum, keys, weights);
      return;
    }
    Reg unused[kLive];
    for (int v = 0; v < kLive; ++v) unused[v] = V::zero();
    stage_.template apply<kVecs, kLive>(weights, kStride, key, j, keys, limited, unused,
                                        cap_derivative);
    weights_from_scores<V, kLive, true>(row_max, inverse_sum, keys, weights);
  }

  template <int kLive>
  void form_grad_scores(int64_t lane, int64_t keys, bool limited, float* weights,
                        float* grad_scores) {
    const Reg keep = V::broadcast(static_cast<float>(dropout_keep_scale(p_.score.dropout)));
    const auto form = [&]<bool kMasked, bool kDropout>() {
      for (int v = 0; v < kLive; ++v) {
        const Reg delta = V::load(scratch_.delta + at_ + lane + v * V::kWidth);
        for (int64_t j = 0; j < keys; ++j) {
          const int64_t offset = j * kStride + v * V::kWidth;
          Reg grad = V::load(grad_scores + offset);
          if constexpr (kDropout) grad = V::mul(grad, keep);
          V::store(grad_scores + offset,
                   score_gradient<V, kMasked, kDropout>(grad, delta, keep, weights + offset));
        }
      }
    };
    if (stage_.has_dropout()) {
      form.template operator()<true, true>();
    } else if (limited || p_.score.bias_kind != BiasKind::kNone) {
      form.template operator()<true, false>();
    } else {
      form.template operator()<false, false>();
    }
  }

  const BackwardParams& p_;
  const Scratch& scratch_;
  ScoreStage<V>& stage_;
  const TileOfBlock tile_;
  const int64_t at_;         // of its statistics
  const float scale_;        // of dS in dQ and dK
  const float score_scale_;  // of the products; float queries are scaled before them
};

}  // namespace
}  // namespace flash
