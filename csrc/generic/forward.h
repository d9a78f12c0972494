#pragma once
// The forward: online softmax over blocks of keys, for one tile of queries at a time.
//
// Dao, "FlashAttention-2" (arXiv:2307.08691), algorithm 1, with transposed scores: lanes are
// queries, so max, sum and exponential are vertical operations and nothing is reduced across a
// register.
//
//   in    Q[rows, D] packed once as (scale * Q)^T; K[S, D] and V[S, Dv] read in place
//   tmp   S^T[block][lanes], turned into weights P^T in place
//   out   O[rows, Dv], accumulated in place; row_max and row_sum. Both are stored, because their
//         log-sum-exp would lose log(row_sum) if |row_max| is large.

#include <cstdint>
#include <limits>

#include "csrc/generic/decode.h"
#include "csrc/generic/exp.h"
#include "csrc/generic/forward_scratch.h"
#include "csrc/generic/score_stage.h"
#include "csrc/generic/tiles.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

/// One tile: queries first … first + count - 1 of one (batch, head), in kVecs vectors. All methods
/// of a tile must be called with the same kVecs.
template <class V>
class ForwardTile {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;

  /// `slot` is the index of the tile in its group; it selects its part of the scratch.
  template <int kVecs>
  void start(const ForwardParams& p, int64_t batch, int64_t head, int64_t first, int64_t count,
             const ForwardScratch<V>& scratch, KeyBlock<V>& block, int64_t slot) {
    const Shape& shape = p.shape;
    p_ = &p;
    count_ = count;
    block_ = &block;
    first_out_ = row_offset(p.out, batch, head, first);
    out_ = out_is_16_bit() ? scratch.out + slot * kMaxLanes * shape.value_dim
                           : static_cast<T*>(p.out.data) + first_out_;
    out_stride_ = out_is_16_bit() ? shape.value_dim : p.out.strides.row;
    const int64_t at = (batch * shape.heads + head) * shape.queries + first;
    row_max_ = static_cast<T*>(p.row_max) + at;
    row_sum_ = static_cast<T*>(p.row_sum) + at;
    queries_ = scratch.queries + slot * shape.head_dim * kMaxLanes;
    scores_ = scratch.scores;
    const RowView<T> rows =
        read_rows<V>(p.query, p.storage, batch, head, first, count, shape.head_dim, scratch.keys);
    pack_transposed<V, kVecs * V::kWidth>(rows.data, rows.stride, count, shape.head_dim,
                                          static_cast<T>(p.score.scale), queries_);
    block.start(batch, head);
    stage_.start(p.score, shape, batch, head, first, count, scratch.bias);
    next_ = stage_.ranges().key_begin();
    // The sink acts as a first key with weight e^0.
    const bool has_sink = !(stage_.sink() == -std::numeric_limits<T>::infinity());
    for (int v = 0; v < kVecs; ++v) {
      max_[v] = V::broadcast(stage_.sink());
      sum_[v] = V::broadcast(T(has_sink ? 1 : 0));
    }
  }

  /// Whether keys are left, and the first key of the next step.
  bool has_keys() const { return next_ < stage_.ranges().key_end(); }
  int64_t next_key() const { return next_; }

  /// Processes the next block of keys.
  template <int kVecs>
  void step() {
    const int64_t key = next_;
    next_ = min_of(block_->end_of_step(key), stage_.ranges().key_end());
    const int64_t keys = next_ - key;
    weigh_block<kVecs>(key, keys);
    update_out<kVecs>(key, keys, key > stage_.ranges().key_begin(), !has_keys());
  }

  /// Must be called after the last step.
  template <int kVecs>
  void finish() {
    store_statistics<kVecs>();
    const bool has_keys = stage_.ranges().key_begin() < stage_.ranges().key_end();
    for (int64_t i = 0; i < count_; ++i) {
      if (!has_keys || row_sum_[i] == 0) finish_empty_row(i);
    }
    convert_out();
  }

 private:
  bool out_is_16_bit() const { return p_->out_storage != Storage::kNative; }

  T finish_scale() const { return static_cast<T>(dropout_keep_scale(p_->score.dropout)); }

  // Forms the scores of a block and turns them into weights relative to the largest score so far.
  // Rescales the row sums and sets `rescale_` for the output if the maximum has grown.
  template <int kVecs>
  void weigh_block(int64_t key, int64_t keys) {
    constexpr int kLanes = kVecs * V::kWidth;
    Reg top[kVecs];
    for (int v = 0; v < kVecs; ++v) top[v] = max_[v];
    block_->seek(key);
    stage_.template start_block<kVecs>(key, keys);
    stage_.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool limited) {
          form_scores<kVecs, kLive>(key, j, n, dead, limited, top + dead);
        });

    const Reg minus_inf = V::broadcast(-std::numeric_limits<T>::infinity());
    Reg base[kVecs], factor[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      // -inf - (-inf) is NaN, so a lane without a key so far subtracts 0 instead.
      base[v] = V::if_equal(top[v], minus_inf, V::zero(), top[v]);
      factor[v] = V::sub(max_[v], base[v]);
      max_[v] = top[v];
    }
    exp<V>(factor);
    for (int v = 0; v < kVecs; ++v) {
      V::store(rescale_ + v * V::kWidth, factor[v]);
      sum_[v] = V::mul(sum_[v], factor[v]);
    }
    stage_.ranges().template for_segments<kVecs>(
        key, keys, [&]<int kLive>(int64_t j, int64_t n, int dead, bool) {
          weigh<kVecs, kLive>(scores_ + j * kLanes, n, dead, base + dead, sum_ + dead);
        });
  }

  // Adds P V of the block to the output. With `finish`, also divides the output by the row sum.
  template <int kVecs>
  void update_out(int64_t key, int64_t keys, bool accumulate, bool finish) {
    constexpr int kLanes = kVecs * V::kWidth;
    T* scores = scores_;
    if (stage_.has_dropout()) stage_.template drop<kVecs>(scores, kLanes, key, keys);
    alignas(64) T scale[kLanes];
    if (finish) {
      const Reg one = V::broadcast(finish_scale());
      for (int v = 0; v < kVecs; ++v) V::store(scale + v * V::kWidth, V::div(one, sum_[v]));
    }
    int64_t begins[kLanes], ends[kLanes];
    const bool ragged = !stage_.ranges().is_unlimited(key, keys);
    if (ragged) stage_.ranges().attended_keys(key, keys, begins, ends);
    const Right<T> values = {block_->value(key), block_->value_stride()};
    Factors factors = Factors::kAll;
    const auto [first, last] = stage_.unmasked_keys(key, keys);
    if (!block_->values_are_finite(key, first) ||
        !block_->values_are_finite(key + last, keys - last)) {
      stage_.template mark_masked<kVecs>(scores, kLanes, key, keys);
      factors = Factors::kUnmasked;
    }
    update_rows<V>(factors, LeftColumns<T>{scores, kLanes}, values, keys, out_, out_stride_, count_,
                   p_->shape.value_dim,
                   {accumulate, T(1), accumulate ? rescale_ : nullptr, finish ? scale : nullptr},
                   ragged ? Terms{begins, ends} : Terms{});
  }

  // Forms the final scores of one segment and raises `top` to the largest score of each lane.
  template <int kVecs, int kLive>
  void form_scores(int64_t block, int64_t j, int64_t keys, int dead, bool limited, Reg* top) {
    constexpr int kLanes = kVecs * V::kWidth;
    const T* left = block_->key(block + j);
    const int64_t stride = block_->key_stride(), depth = p_->shape.head_dim;
    const Right<T> packed = {queries_ + dead * V::kWidth, kLanes};
    T* scores = scores_ + j * kLanes + dead * V::kWidth;
    if (!limited && !changes_scores(p_->score)) {
      raw_scores_and_max<V, kLive>(left, stride, keys, depth, packed, scores, kLanes, top);
    } else {
      raw_scores<V, kLive>(left, stride, keys, depth, packed, scores, kLanes);
      stage_.template apply<kVecs, kLive>(scores, kLanes, block, j, keys, limited, top);
    }
  }

  // Turns scores into weights in place; weights of the dead vectors become 0. The segment has a sum
  // of its own, which rounds less in long rows.
  template <int kVecs, int kLive>
  [[gnu::noinline]] static void weigh(T* row, int64_t keys, int dead, const Reg* base, Reg* total) {
    constexpr int kLanes = kVecs * V::kWidth;
    for (int v = 0; v < dead; ++v, row += V::kWidth) {
      for (int64_t j = 0; j < keys; ++j) V::store(row + j * kLanes, V::zero());
    }
    for (int v = 0; v < kLive; ++v, row += V::kWidth) {
      const Reg from = base[v];
      Reg sum = V::zero();
      for_exp_groups<V>(
          keys, [&]<int kRows>(int64_t j) __attribute__((always_inline)) {
            T* at = row + j * kLanes;
            Reg weight[kRows];
            each<kRows>([&](int i) { weight[i] = V::sub(V::load(at + i * kLanes), from); });
            exp<V>(weight);
            each<kRows>([&](int i) { V::store(at + i * kLanes, weight[i]); });
            each<kRows>([&](int i) { sum = V::add(sum, weight[i]); });
          });
      total[v] = V::add(total[v], sum);
    }
  }

  template <int kVecs>
  void store_statistics() {
    constexpr int kLanes = kVecs * V::kWidth;
    alignas(64) T lanes[2][kLanes];
    for (int v = 0; v < kVecs; ++v) {
      V::store(lanes[0] + v * V::kWidth, max_[v]);
      V::store(lanes[1] + v * V::kWidth, sum_[v]);
    }
    for (int64_t i = 0; i < count_; ++i) {
      row_max_[i] = lanes[0][i];
      row_sum_[i] = lanes[1][i];
    }
  }

  // A row without a positive weight is 0 if it attends no key. If it attends keys, all of its
  // scores are -inf, from an Inf or an overflow, and its softmax is NaN.
  void finish_empty_row(int64_t i) {
    const bool is_nan = row_sum_[i] == 0 && !p_->is_part && stage_.attends_any(i);
    if (is_nan) row_sum_[i] = std::numeric_limits<T>::quiet_NaN();
    for (int64_t c = 0; c < p_->shape.value_dim; ++c) {
      out_[i * out_stride_ + c] = is_nan ? row_sum_[i] : T(0);
    }
  }

  void convert_out() const {
    if (!out_is_16_bit()) return;
    for (int64_t i = 0; i < count_; ++i) {
      store_16_bit<V>(out_ + i * out_stride_, p_->shape.value_dim, p_->out_storage, p_->out.data,
                      first_out_ + i * p_->out.strides.row);
    }
  }

  static constexpr int kMaxVecs = QueryTiles<V>::kMaxVecs;
  static constexpr int kMaxLanes = QueryTiles<V>::kMaxLanes;

  const ForwardParams* p_;
  int64_t count_;
  KeyBlock<V>* block_;
  int64_t next_;  // the first key of the next step
  T* out_;        // the output rows: in place, or in the scratch if stored in a 16-bit type
  int64_t out_stride_;
  int64_t first_out_;  // the offset of the first output row in p.out, in elements
  T* row_max_;
  T* row_sum_;
  T* queries_;
  T* scores_;
  ScoreStage<V> stage_;
  Reg max_[kMaxVecs];
  Reg sum_[kMaxVecs];
  alignas(64) T rescale_[kMaxLanes];  // exp(old max - new max), multiplies the old output
};

template <class V>
WorkPlan forward_plan(const ForwardParams& p) {
  const Shape& s = p.shape;
  const QueryTiles<V> tiles(s.queries);
  return {s.batch * s.heads * tiles.count(), 1,
          2 * QueryTiles<V>::kMaxLanes * most_attended(p.score, s.keys) *
              (s.head_dim + s.value_dim + 8)};
}

template <class V>
int64_t forward_scratch_bytes(const ForwardParams& p) {
  const int64_t tiles = ForwardScratch<V>(p, nullptr).bytes;
  const int64_t decode = Decode<V>::fits(p) ? Decode<V>::scratch_bytes(p) : 0;
  return round_up(max_of(tiles, decode), 64);
}

/// `forward` for problems that Decode handles.
template <class V>
void forward_decode(const ForwardParams& p, int64_t unit_begin, int64_t unit_end, void* memory) {
  Decode<V> decode(p, memory);
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    decode.run(unit / p.shape.heads, unit % p.shape.heads);
  }
}

/// Whether a query attends at least one key. Used to merge the results of parts of the keys.
template <class V>
bool attends_any(const ForwardParams& p, int64_t batch, int64_t head, int64_t query) {
  ScoreStage<V> stage;
  stage.start(p.score, p.shape, batch, head, query, 1, nullptr);
  return stage.attends_any(0);
}

/// Processes units unit_begin … unit_end - 1, a group of tiles at a time. Tiles of a group share
/// only inputs, so results do not depend on the grouping.
template <class V>
void forward(const ForwardParams& p, int64_t unit_begin, int64_t unit_end, void* memory) {
  if (Decode<V>::fits(p)) return forward_decode<V>(p, unit_begin, unit_end, memory);
  const QueryTiles<V> tiles(p.shape.queries);
  const ForwardScratch<V> scratch(p, memory);
  KeyBlock<V> block(p, scratch);
  const int64_t most = tiles_per_group<V>(p);
  ForwardTile<V> group[kMaxTilesPerGroup];
  for (int64_t unit = unit_begin; unit < unit_end;) {
    const int64_t batch = unit / (tiles.count() * p.shape.heads);
    const int64_t head = unit / tiles.count() % p.shape.heads;
    const int64_t first_order = unit % tiles.count();
    const int64_t size = min_of(most, min_of(unit_end - unit, tiles.count() - first_order));
    // Alternates between both ends: the cost of causal tiles grows with their position, and this
    // way every contiguous range of units, as a thread gets it, costs about the same.
    const auto tile_at = [&](int64_t slot) {
      const int64_t order = first_order + slot;
      return order % 2 == 0 ? order / 2 : tiles.count() - 1 - order / 2;
    };
    const auto for_tiles = [&](auto&& f) {
      for (int64_t slot = 0; slot < size; ++slot) {
        with_vecs<V::kScoreVecs>(tiles.vecs(tile_at(slot)),
                                 [&]<int kVecs>() { f.template operator()<kVecs>(slot); });
      }
    };
    for_tiles([&]<int kVecs>(int64_t slot) {
      const int64_t begin = tiles.begin(tile_at(slot));
      group[slot].template start<kVecs>(p, batch, head, begin, tiles.end(tile_at(slot)) - begin,
                                        scratch, block, slot);
    });
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    for (int64_t order = 0; order != kNone;) {
      int64_t next = kNone;
      for_tiles([&]<int kVecs>(int64_t slot) {
        if (!group[slot].has_keys()) return;
        if (block.order(group[slot].next_key()) <= order) group[slot].template step<kVecs>();
        if (group[slot].has_keys()) next = min_of(next, block.order(group[slot].next_key()));
      });
      order = next;
    }
    for_tiles([&]<int kVecs>(int64_t slot) { group[slot].template finish<kVecs>(); });
    unit += size;
  }
}

}  // namespace
}  // namespace flash
