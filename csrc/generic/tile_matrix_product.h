#pragma once
// The product of two matrices of float on matrix tiles, as sums of bfloat16 parts.
//
// A cache block of the left matrix is packed once and multiplied by kTileLanes columns of the right
// one at a time. Units of rows and columns that rows_fit_parts refuses are left to
// matrix_product.h.

#include <cstdint>
#include <cstring>

#include "csrc/generic/lanes.h"
#include "csrc/generic/matrix_product.h"
#include "csrc/generic/tile_parts.h"

namespace flash {
namespace {

/// Whether tiles compute a product: if it is asked for, and fills them.
inline bool uses_tiles(const ProductParams& p) {
  const bool is_asked_for = p.float_parts == 2 && p.bias == nullptr;
  return is_asked_for && (p.left_step == 1 || p.left_row == 1) && p.rows >= kTileRows &&
         p.columns >= kTileRows && p.depth >= kTileDepth;
}

/// to[n][c] = elements c of rows 2 n and 2 n + 1, of `count` rows of a step: the right operand of
/// as many terms. Remainders are zero.
template <class V>
void pack_terms(RowView<BFloat16> rows, int64_t count, int64_t columns, Word* to) {
  for (int64_t n = 0; n < kTileDepth; n += 2, to += kTileLanes) {
    BFloat16 edge[2][kTileLanes];
    const auto load = [&](int64_t row, BFloat16* copy) -> const BFloat16* {
      if (row < count && columns == kTileLanes) return rows.at(row);
      std::memset(copy, 0, sizeof(edge[0]));
      if (row < count) std::memcpy(copy, rows.at(row), columns * sizeof(BFloat16));
      return copy;
    };
    const BFloat16 *const low = load(n, edge[0]), *const high = load(n + 1, edge[1]);
    for (int64_t c = 0; c < kTileLanes; c += V::kWidth) {
      V::store_words(to + c, V::load_pairs(low + c, high + c));
    }
  }
}

/// One cache block of rows of the result, with memory for its operands: 368 KiB for two parts.
template <class V, class M, int kParts>
class TileProductBlock {
 public:
  TileProductBlock(const ProductParams& p, int64_t first, int64_t rows)
      : p_(p), first_(first), rows_(rows) {}

  /// Adds terms n … n + depth - 1 to the result, or replaces it by them.
  void step(int64_t n, int64_t depth, bool add) {
    const float* left =
        static_cast<const float*>(p_.left) + first_ * p_.left_row + n * p_.left_step;
    pack_left(left, depth);
    for (int64_t c = 0; c < p_.columns; c += kTileLanes) {
      const int64_t columns = min_of(kTileLanes, p_.columns - c);
      const float* right =
          static_cast<const float*>(p_.right) + n * p_.right_row + c * p_.right_column;
      float* out = static_cast<float*>(p_.out) + first_ * p_.out_row + c;
      const bool right_fits = pack_right(right, depth, columns);
      for (int64_t row = 0, end = 0; row < rows_; row = end) {
        const bool fits = right_fits && fits_[row / kProductRows];
        do {
          end = min_of(end + kProductRows, rows_);
        } while (end < rows_ && fits == (right_fits && fits_[end / kProductRows]));
        float* const to = out + row * p_.out_row;
        if (fits) {
          multiply(row, end - row, depth, columns, to, add);
        } else {
          multiply_on_vectors({left + row * p_.left_row, right, to}, end - row, depth, columns,
                              add);
        }
      }
    }
  }

 private:
  struct Operands {
    const float *left, *right;
    float* out;
  };

  void pack_left(const float* left, int64_t depth) {
    const bool rows_are_contiguous = p_.left_step == 1;
    for (int64_t row = 0; row < rows_; row += kProductRows) {
      const int64_t count = min_of(kProductRows, rows_ - row);
      const float* from = left + row * p_.left_row;
      fits_[row / kProductRows] = rows_are_contiguous
                                      ? rows_fit_parts<V>({from, p_.left_row}, count, depth)
                                      : rows_fit_parts<V>({from, p_.left_step}, depth, count);
    }
    if (rows_are_contiguous) {
      pack_row_parts<V, kParts>({left, p_.left_row}, rows_, depth, stage_, left_, kLeftBytes);
      tiles_ = {left_, depth_steps(depth) * kTileBytes, kTileBytes, kLeftBytes};
    } else {
      pack_transposed_parts<V, kParts>({left, p_.left_step}, depth, rows_, stage_, left_,
                                       kLeftBytes);
      tiles_ = {left_, kTileBytes, ceil_div(rows_, kTileRows) * kTileBytes, kLeftBytes};
    }
  }

  bool pack_right(const float* right, int64_t depth, int64_t columns) {
    if (p_.right_column == 1) {
      const RowView<float> terms = {right, p_.right_row};
      if (!rows_fit_parts<V>(terms, depth, columns)) return false;
      for_parts<V, kParts>(terms, depth, columns, 1, stage_,
                           [&](int part, int64_t first, RowView<BFloat16> from, int64_t count) {
                             pack_terms<V>(from, count, columns,
                                           right_ + part * kRightWords + first / 2 * kTileLanes);
                           });
      return true;
    }
    const RowView<float> rows = {right, p_.right_column};
    if (!rows_fit_parts<V>(rows, columns, depth)) return false;
    for_parts<V, kParts>(rows, columns, depth, 1, stage_,
                         [&](int part, int64_t, RowView<BFloat16> from, int64_t count) {
                           pack_columns<V, 2>(from, count, depth, padded_,
                                              right_ + part * kRightWords);
                         });
    return true;
  }

  // Rows first … first + count - 1 of the block.
  void multiply(int64_t first, int64_t count, int64_t depth, int64_t columns, float* out,
                bool add) {
    const RightWords right = {right_, kRightWords};
    LeftTiles left = tiles_;
    left.data += first / kTileRows * left.row;
    const int64_t steps = depth_steps(depth);
    const int64_t whole = columns == kTileLanes ? count / kTileRows * kTileRows : 0;
    if (whole > 0) tile_product<M, kParts, 2>(left, right, whole, steps, out, p_.out_row, add);
    if (whole == count) return;
    left.data += whole / kTileRows * left.row;
    tile_product<M, kParts, 2>(left, right, round_up(count - whole, kTileRows), steps, sums_,
                               kTileLanes, false);
    for (int64_t r = whole; r < count; ++r) {
      const float* sum = sums_ + (r - whole) * kTileLanes;
      float* to = out + r * p_.out_row;
      for_lanes<V>(columns, [&](int64_t c, auto lanes) {
        const auto old = add ? lanes.load(to + c) : V::zero();
        lanes.store(to + c, V::add(V::load(sum + c), old));
      });
    }
  }

  void multiply_on_vectors(const Operands& at, int64_t rows, int64_t depth, int64_t columns,
                           bool add) const {
    ProductParams p = p_;
    p.left = at.left, p.right = at.right, p.out = at.out;
    p.rows = rows, p.depth = depth, p.columns = columns;
    p.add = add;
    matrix_product<V>(p, 0, product_plan(p).units);
  }

  static constexpr int64_t kLeftBytes =
      kProductBlock * kProductDepth * static_cast<int64_t>(sizeof(BFloat16));
  static constexpr int64_t kRightWords = kProductDepth / 2 * kTileLanes;
  static constexpr int64_t kWidest = kProductDepth > kProductBlock ? kProductDepth : kProductBlock;

  const ProductParams& p_;
  const int64_t first_, rows_;
  LeftTiles tiles_ = {};
  bool fits_[kProductBlock / kProductRows];  ///< whether tiles may compute with these rows
  alignas(64) char left_[kParts * kLeftBytes];
  alignas(64) Word right_[kParts * kRightWords];
  alignas(64) BFloat16 stage_[kParts * kTileDepth * kWidest];
  alignas(64) BFloat16 padded_[kTileLanes * kProductDepth];
  alignas(64) float sums_[kProductBlock * kTileLanes];
};

/// `matrix_product` where `uses_tiles` is true.
template <class V, class M, int kParts>
void tile_matrix_product(const ProductParams& p, int64_t unit_begin, int64_t unit_end) {
  const typename M::Session session;
  const int64_t end = min_of(unit_end * kProductRows, p.rows);
  for (int64_t first = unit_begin * kProductRows; first < end; first += kProductBlock) {
    TileProductBlock<V, M, kParts> block(p, first, min_of(kProductBlock, end - first));
    for (int64_t n = 0; n < p.depth; n += kProductDepth) {
      block.step(n, min_of(kProductDepth, p.depth - n), p.add || n > 0);
    }
  }
}

}  // namespace
}  // namespace flash
