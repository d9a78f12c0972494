#pragma once
// The tiles of queries, and the functions on one tile that forward and backward share.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/generic/stored_rows.h"

namespace flash {
namespace {

/// Splits queries into tiles of at most kMaxVecs vectors. A remainder of one vector takes vectors
/// from the tiles before it (3 + 1 becomes 2 + 2), so that every load is used for more products.
template <class V>
class QueryTiles {
 public:
  static constexpr int kMaxVecs = V::kScoreVecs;
  static constexpr int kMaxLanes = kMaxVecs * V::kWidth;

  explicit QueryTiles(int64_t queries)
      : queries_(queries), vecs_(ceil_div(queries, V::kWidth)), count_(ceil_div(vecs_, kMaxVecs)) {
    const int64_t missing = count_ * kMaxVecs - vecs_;
    full_ = max_of(count_ - missing, 0);
  }

  int64_t count() const { return count_; }
  int vecs(int64_t tile) const {
    if (count_ == 1) return static_cast<int>(vecs_);
    return tile < full_ ? kMaxVecs : kMaxVecs - 1;
  }
  int64_t begin(int64_t tile) const {
    const int64_t before = tile * kMaxVecs - max_of(tile - full_, 0);
    return min_of(before * V::kWidth, queries_);
  }
  int64_t end(int64_t tile) const { return tile + 1 == count_ ? queries_ : begin(tile + 1); }

 private:
  int64_t queries_;
  int64_t vecs_;
  int64_t count_;
  int64_t full_;  // tiles of kMaxVecs vectors; the others have one fewer
};

/// Forms S^T, one register block at a time, and calls `done(first_key, tile)` with each: the scores
/// of rows first_key, first_key + 1, … against kVecs vectors of lanes. `left` has `count` rows of
/// `depth` elements; `packed` is the other operand, transposed: `depth` rows of lanes.
template <class V, int kVecs, class Done>
[[gnu::always_inline]] inline void score_blocks(const typename V::Scalar* left, int64_t stride,
                                                int64_t count, int64_t depth,
                                                Right<typename V::Scalar> packed, Done&& done) {
  const auto first_chain = [&]<int kRows>(int64_t j, typename V::Reg(&tile)[kRows][kVecs])
      __attribute__((always_inline)) {
    clear<V>(tile);
    multiply_add<V, kRows, kVecs, false>(
        tile, Left<typename V::Scalar>{left + j * stride, stride, 1}, packed,
        min_of(depth, V::kLongestChain), V::first(V::kWidth));
  };
  // A loop of its own: where the second chain needs registers, the first sum is kept in memory.
  if (depth <= V::kLongestChain) {
    for_row_blocks<V::score_rows(kVecs)>(
        count, [&]<int kRows>(int64_t j) __attribute__((always_inline)) {
          typename V::Reg tile[kRows][kVecs];
          first_chain(j, tile);
          done(j, tile);
        });
    return;
  }
  for_row_blocks<V::score_rows(kVecs)>(
      count, [&]<int kRows>(int64_t j) __attribute__((always_inline)) {
        typename V::Reg tile[kRows][kVecs];
        first_chain(j, tile);
        for (int64_t d = V::kLongestChain; d < depth; d += V::kLongestChain) {
          typename V::Reg part[kRows][kVecs];
          clear<V>(part);
          multiply_add<V, kRows, kVecs, false>(
              part, Left<typename V::Scalar>{left + j * stride + d, stride, 1},
              {packed.data + d * packed.stride, packed.stride}, min_of(depth - d, V::kLongestChain),
              V::first(V::kWidth));
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kVecs; ++v) tile[r][v] = V::add(tile[r][v], part[r][v]);
          }
        }
        done(j, tile);
      });
}

/// Raw scores s[key][lane] = scale * q k.
template <class V, int kVecs>
[[gnu::noinline]] void raw_scores(const typename V::Scalar* keys, int64_t key_stride, int64_t count,
                                  int64_t depth, Right<typename V::Scalar> packed,
                                  typename V::Scalar* s, int64_t stride) {
  score_blocks<V, kVecs>(keys, key_stride, count, depth, packed,
                         [&]<int kRows>(int64_t j, typename V::Reg(&tile)[kRows][kVecs]) {
#pragma GCC unroll 16
                           for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
                             for (int v = 0; v < kVecs; ++v) {
                               V::store(s + (j + r) * stride + v * V::kWidth, tile[r][v]);
                             }
                           }
                         });
}

/// Like raw_scores; also raises `max` to the largest score of each lane.
template <class V, int kVecs>
[[gnu::noinline]] void raw_scores_and_max(const typename V::Scalar* keys, int64_t key_stride,
                                          int64_t count, int64_t depth,
                                          Right<typename V::Scalar> packed, typename V::Scalar* s,
                                          int64_t stride, typename V::Reg* max) {
  score_blocks<V, kVecs>(keys, key_stride, count, depth, packed,
                         [&]<int kRows>(int64_t j, typename V::Reg(&tile)[kRows][kVecs]) {
#pragma GCC unroll 4
                           for (int v = 0; v < kVecs; ++v) {
                             typename V::Reg top = max[v];
#pragma GCC unroll 16
                             for (int r = 0; r < kRows; ++r) {
                               top = V::max(tile[r][v], top);
                               V::store(s + (j + r) * stride + v * V::kWidth, tile[r][v]);
                             }
                             max[v] = top;
                           }
                         });
}

/// Returns in lane i the dot product of row i of `rows`, of which `count` exist, and column i of
/// `packed`. Sums in the order of `score_blocks`, so equal terms give equal bits.
template <class V>
typename V::Reg row_dots(const typename V::Scalar* rows, int64_t stride, int64_t count,
                         int64_t columns, Right<typename V::Scalar> packed) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  static_assert(V::kLongestChain % W == 0);
  Reg sum = V::zero(), part = V::zero();
  for (int64_t c = 0; c < columns; c += W) {
    const int64_t width = min_of(W, columns - c);
    const typename V::Scalar* factors = packed.data + c * packed.stride;
    Reg block[W];
    if (count >= W && width == W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = V::load(rows + i * stride + c);
      V::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        part = V::fma(block[i], V::load(factors + i * packed.stride), part);
      }
    } else {
      const typename V::Mask mask = V::first(width);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        block[i] = i < count ? V::load(rows + i * stride + c, mask) : V::zero();
      }
      V::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (i < width) part = V::fma(block[i], V::load(factors + i * packed.stride), part);
      }
    }
    if ((c + width) % V::kLongestChain != 0 && c + width < columns) continue;
    sum = c < V::kLongestChain ? part : V::add(sum, part);
    part = V::zero();
  }
  return sum;
}

/// Whether every lane is 0.
template <class V>
bool is_zero(typename V::Reg x) {
  alignas(64) typename V::Scalar lanes[V::kWidth];
  V::store(lanes, x);
  bool zero = true;
  for (int i = 0; i < V::kWidth; ++i) zero &= lanes[i] == 0;
  return zero;
}

/// Whether no element of these rows is NaN or Inf.
template <class V>
[[gnu::noinline]] bool all_finite(const typename V::Scalar* rows, int64_t stride, int64_t count,
                                  int64_t columns) {
  // x * 0 is 0 if x is finite, else NaN.
  constexpr int kChains = 4;  // independent sums, so that additions need not wait for each other
  const int64_t last = columns % V::kWidth;
  const typename V::Mask tail = V::first(last);
  typename V::Reg sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = V::zero();
  for (int64_t r = 0; r < count; r += kChains) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) {
      if (r + i >= count) break;
      const typename V::Scalar* row = rows + (r + i) * stride;
      int64_t c = 0;
      for (; c + V::kWidth <= columns; c += V::kWidth) {
        sums[i] = V::fma(V::load(row + c), V::zero(), sums[i]);
      }
      if (last > 0) sums[i] = V::fma(V::load(row + c, tail), V::zero(), sums[i]);
    }
  }
  const typename V::Reg sum = V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]));
  return is_zero<V>(sum);
}

}  // namespace
}  // namespace flash
