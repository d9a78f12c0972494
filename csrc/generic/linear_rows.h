#pragma once
// A linear layer on rows: out = x W^T + bias, where both factors have contiguous rows.
//
// The micro-kernel of product.h has columns of W^T in its lanes, so that W must be transposed
// first. With a few rows this takes as long as the products. Here a lane has every kWidth-th term
// of a sum, and the registers of a block are summed across lanes in the end. The order of an
// element's sum depends on the depth alone, not on the rows and columns computed with it.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

/// Rows and columns of a register block, which with those of the factors fit the registers.
template <class V>
constexpr int kLinearRows = V::kColumnVecs == 4 ? 6 : 4;
template <class V>
constexpr int kLinearColumns = V::kColumnVecs == 4 ? 4 : 2;

/// The lanes of registers first … first + kWidth - 1 of `tile`, summed: lane i has register i.
template <class V, int kFirst, int kStep, int kRows, int kColumns>
[[gnu::always_inline]] inline typename V::Reg block_sums(
    const typename V::Reg (&tile)[kRows][kColumns]) {
  if constexpr (kFirst >= kRows * kColumns) {
    return V::zero();
  } else if constexpr (kStep == 0) {
    return tile[kFirst / kColumns][kFirst % kColumns];
  } else {
    return V::template add_across<kStep - 1>(
        block_sums<V, kFirst, kStep - 1>(tile),
        block_sums<V, kFirst + (1 << (kStep - 1)), kStep - 1>(tile));
  }
}

constexpr int steps_across(int lanes) { return lanes == 1 ? 0 : 1 + steps_across(lanes / 2); }

/// sums[kRows * kColumns] = the sums of all registers, from kFirst on.
template <class V, int kFirst, int kRows, int kColumns>
[[gnu::always_inline]] inline void store_sums(const typename V::Reg (&tile)[kRows][kColumns],
                                              typename V::Scalar* sums) {
  V::store(sums + kFirst, block_sums<V, kFirst, steps_across(V::kWidth)>(tile));
  if constexpr (kFirst + V::kWidth < kRows * kColumns) {
    store_sums<V, kFirst + V::kWidth>(tile, sums);
  }
}

/// Weights of more bytes are probably not in the second-level cache.
constexpr int64_t kCachedWeight = int64_t{1} << 19;

/// Which part of a layer is computed: columns first … last - 1 from terms `term` … `term` + depth
/// - 1.
struct LinearPart {
  int64_t first, last;
  int64_t term, depth;
  /// The columns that are computed after these, so many columns further, are prefetched: 0 for
  /// none. Each block of rows prefetches its share of their terms.
  int64_t ahead;
};

/// kRows rows, from row r on. With kAdd the sums are added to the result, else to the bias.
template <class V, int kRows, bool kAdd>
[[gnu::noinline]] void linear_block(const LinearRows<typename V::Scalar>& p, const LinearPart& part,
                                    int64_t r) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth, kColumns = kLinearColumns<V>;
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const T* const x = p.x + r * p.x_row + part.term;
  const int64_t whole = part.depth / W * W, last = part.last, ahead = part.ahead;
  const auto tail = V::first(part.depth - whole);
  for (int64_t c = part.first; c < last; c += kColumns) {
    const int64_t columns = min_of(kColumns, last - c);
    const T* weight[kColumns];  // past the last column, the last one again
    for (int i = 0; i < kColumns; ++i) {
      weight[i] = p.weight + (c + min_of(i, columns - 1)) * p.weight_row + part.term;
    }
    if (ahead > 0 && c + ahead + kColumns <= p.columns) {
      const int64_t end = part.depth * (r + kRows) / p.rows;
      for (int i = 0; i < kColumns; ++i) {
        const T* const next = weight[i] + ahead * p.weight_row;
        for (int64_t n = part.depth * r / p.rows; n < end; n += kLine) {
          __builtin_prefetch(next + n, /*rw=*/0, /*locality=*/2);
        }
      }
    }
    Reg tile[kRows][kColumns];
    clear<V>(tile);
    const auto add_terms = [&](int64_t n, auto&& load) __attribute__((always_inline)) {
      Reg factor[kColumns];
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i) factor[i] = load(weight[i] + n);
#pragma GCC unroll 8
      for (int k = 0; k < kRows; ++k) {
        const Reg row = load(x + k * p.x_row + n);
#pragma GCC unroll 4
        for (int i = 0; i < kColumns; ++i) tile[k][i] = V::fma(row, factor[i], tile[k][i]);
      }
    };
    for (int64_t n = 0; n < whole; n += W) add_terms(n, [](const T* at) { return V::load(at); });
    if (whole < part.depth) add_terms(whole, [&](const T* at) { return V::load(at, tail); });
    alignas(64) T sums[(kRows * kColumns + W - 1) / W * W];
    store_sums<V, 0>(tile, sums);
    T bias[kColumns] = {};
    if (!kAdd && p.bias != nullptr) {
      for (int64_t i = 0; i < columns; ++i) bias[i] = p.bias[c + i];
    }
    for (int k = 0; k < kRows; ++k) {
      T* const to = p.out + (r + k) * p.out_row + c;
      const T* const sum = sums + k * kColumns;
      if (columns == kColumns) {
        for (int i = 0; i < kColumns; ++i) to[i] = sum[i] + (kAdd ? to[i] : bias[i]);
      } else {
        for (int64_t i = 0; i < columns; ++i) to[i] = sum[i] + (kAdd ? to[i] : bias[i]);
      }
    }
  }
}

template <class V>
void linear_rows(const LinearRows<typename V::Scalar>& p) {
  using T = typename V::Scalar;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  constexpr int kRows = kLinearRows<V>, kColumns = kLinearColumns<V>;
  // Terms of which a few rows of x, and columns of which as many terms of the weights, stay in the
  // first-level cache.
  constexpr int64_t kDepth = 2048 / kBytes, kCached = (int64_t{1} << 14) / kBytes;
  const bool prefetches = p.rows > kRows && p.columns * p.depth * kBytes > kCachedWeight;
  LinearPart part = {};
  do {
    part.depth = min_of(kDepth, p.depth - part.term);
    const int64_t panel = max_of(1, kCached / (kColumns * max_of(1, part.depth))) * kColumns;
    part.ahead = prefetches ? panel : 0;
    for (part.first = 0; part.first < p.columns; part.first = part.last) {
      part.last = min_of(part.first + panel, p.columns);
      for_row_blocks<kRows>(p.rows, [&]<int kBlock>(int64_t r) {
        part.term == 0 ? linear_block<V, kBlock, false>(p, part, r)
                       : linear_block<V, kBlock, true>(p, part, r);
      });
    }
    part.term += part.depth;
  } while (part.term < p.depth);
}

}  // namespace
}  // namespace flash
