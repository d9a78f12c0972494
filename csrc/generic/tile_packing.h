#pragma once
// The operands of tile_product.h, packed from rows of bfloat16.

#include <cstdint>
#include <cstring>

#include "csrc/generic/stored_rows.h"
#include "csrc/generic/tile_product.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

/// to[j][i] = from(i)[j] for sixteen rows of sixteen words; `from(i, c)` loads a register of row i.
template <class V, class Load>
[[gnu::always_inline]] inline void transpose_words(Load&& from, Word* to, int64_t stride) {
  constexpr int W = V::kWidth;
  static_assert(kTileWords % W == 0);
#pragma GCC unroll 2
  for (int c = 0; c < kTileWords; c += W) {
#pragma GCC unroll 2
    for (int r = 0; r < kTileRows; r += W) {
      typename V::Reg words[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) words[i] = from(r + i, c);
      V::transpose(words);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) V::store_words(to + (c + i) * stride + r, words[i]);
    }
  }
}

/// Whether no element of a row is NaN or Inf.
template <class V>
bool row_is_finite(const BFloat16* row, int64_t columns) {
  typename V::Reg sum = V::zero();  // x * 0 is 0 if x is finite, else NaN
  int64_t c = 0;
  for (; c + V::kWidth <= columns; c += V::kWidth) {
    sum = V::fma(V::load(row + c), V::zero(), sum);
  }
  if (c < columns) sum = V::fma(load_first<V>(row + c, columns - c), V::zero(), sum);
  return is_zero<V>(sum);
}

template <class V>
bool rows_are_finite(RowView<BFloat16> rows, int64_t count, int64_t columns) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    finite &= row_is_finite<V>(rows.data + i * rows.stride, columns);
  }
  return finite;
}

/// to[n][i] = elements 2 n and 2 n + 1 of row i: a right operand with a column per row. Columns
/// from `count` on, and terms from `depth` on, are zero. `padded` holds one row of whole steps.
template <class V, int kHalves>
void pack_columns(RowView<BFloat16> rows, int64_t count, int64_t depth, BFloat16* padded,
                  Word* to) {
  constexpr int64_t kLanes = kHalves * kTileRows;
  const int64_t width = depth_steps(depth) * kTileDepth;
  std::memset(padded, 0, kLanes * width * sizeof(BFloat16));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(padded + i * width, rows.data + i * rows.stride, depth * sizeof(BFloat16));
  }
  for (int64_t d = 0; d < width; d += kTileDepth) {
    for (int64_t half = 0; half < kHalves; ++half) {
      const BFloat16* from = padded + half * kTileRows * width + d;
      transpose_words<V>(
          [&](int64_t i, int64_t c)
              __attribute__((always_inline)) { return V::load_words(from + i * width + 2 * c); },
          to + (d / 2) * kLanes + half * kTileRows, kLanes);
    }
  }
}

/// The left operand [rows][depth] of `count` rows; the remainders of the last rows and terms are
/// zero.
inline void pack_rows(RowView<BFloat16> rows, int64_t count, int64_t depth, char* to) {
  const int64_t steps = depth_steps(depth);
  for (int64_t r = 0; r < round_up(count, 2 * kTileRows); ++r) {
    const BFloat16* from = rows.data + r * rows.stride;
    char* row = to + (r / kTileRows * steps * kTileRows + r % kTileRows) * 64;
    for (int64_t n = 0; n < steps; ++n, row += kTileBytes) {
      const int64_t width = r < count ? min_of(kTileDepth, depth - n * kTileDepth) : 0;
      if (width == kTileDepth) {
        std::memcpy(row, from + n * kTileDepth, 64);
      } else {
        std::memset(row, 0, 64);
        std::memcpy(row, from + n * kTileDepth, width * sizeof(BFloat16));
      }
    }
  }
}

/// The left operand [columns][count]: the transpose of `count` rows. Remainders are zero.
template <class V>
void pack_transposed_rows(RowView<BFloat16> rows, int64_t count, int64_t columns, char* to) {
  const int64_t blocks = ceil_div(columns, kTileRows);
  for (int64_t r = 0; r < count; r += kTileDepth) {
    for (int64_t block = 0; block < blocks; ++block, to += kTileBytes) {
      const int64_t width = min_of(kTileRows, columns - block * kTileRows);
      const BFloat16* corner = rows.data + r * rows.stride + block * kTileRows;
      const int64_t height = min_of(kTileDepth, count - r);
      BFloat16 edge[kTileDepth * kTileRows];
      int64_t stride = rows.stride;
      if (width < kTileRows || height < kTileDepth) {
        std::memset(edge, 0, sizeof(edge));
        for (int64_t i = 0; i < height; ++i) {
          std::memcpy(edge + i * kTileRows, corner + i * stride, width * sizeof(BFloat16));
        }
        corner = edge, stride = kTileRows;
      }
      transpose_words<V>(
          [&](int64_t i, int64_t c) __attribute__((always_inline)) {
            const BFloat16* pair = corner + 2 * i * stride + c;
            return V::load_pairs(pair, pair + stride);
          },
          reinterpret_cast<Word*>(to), kTileWords);
    }
  }
}

/// to[n][c] = elements c of rows i and i + 16 of the thirty-two rows from 32 (n / 16) on, i = n %
/// 16: a right operand of as many terms as rows, for each 32 columns, which are `column` words
/// apart. Remainders are zero.
template <class V>
void pack_pairs(RowView<BFloat16> rows, int64_t count, int64_t columns, Word* words,
                int64_t column) {
  for (int64_t c = 0; c < columns; c += kTileLanes, words += column) {
    const int64_t width = min_of(kTileLanes, columns - c);
    Word* to = words;
    for (int64_t row = 0; row < count; row += kTileDepth) {
      for (int64_t i = row; i < row + kTileRows; ++i, to += kTileLanes) {
        BFloat16 edge[2][kTileLanes];
        const auto load = [&](int64_t r, BFloat16* copy) -> const BFloat16* {
          const BFloat16* from = rows.data + r * rows.stride + c;
          if (r < count && width == kTileLanes) return from;
          std::memset(copy, 0, sizeof(edge[0]));
          if (r < count) std::memcpy(copy, from, width * sizeof(BFloat16));
          return copy;
        };
        const BFloat16* low = load(i, edge[0]);
        const BFloat16* high = load(i + kTileRows, edge[1]);
        for (int64_t k = 0; k < kTileLanes; k += V::kWidth) {
          V::store_words(to + k, V::load_pairs(low + k, high + k));
        }
      }
    }
  }
}

}  // namespace
}  // namespace flash
