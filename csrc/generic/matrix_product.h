#pragma once
// The product of two matrices, block by block.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

/// A unit: so many rows of the result.
constexpr int64_t kProductRows = 32;

/// Terms summed in registers, and rows of the result that share what is read of the right matrix:
/// of the left one, a block is a quarter of a second-level cache of 1 MiB, of the right one a panel
/// is a quarter of that.
constexpr int64_t kProductDepth = 256;
constexpr int64_t kProductBlock = 256;

inline WorkPlan product_plan(const ProductParams& p) {
  return {ceil_div(p.rows, kProductRows), 1, 2 * kProductRows * p.depth * p.columns};
}

/// Some rows of the result.
template <class V>
class ProductBlock {
 public:
  using T = typename V::Scalar;

  ProductBlock(const ProductParams& p, int64_t first, int64_t rows)
      : p_(p), first_(first), rows_(rows) {}

  /// Adds terms n, n + 1, …, or lets them replace what is there.
  void step(int64_t n, int64_t depth, bool add) {
    const T* left = static_cast<const T*>(p_.left) + first_ * p_.left_row + n * p_.left_step;
    T* out = static_cast<T*>(p_.out) + first_ * p_.out_row;
    RowUpdate<T> update = {add, T(1), nullptr, nullptr};
    update.prefetch = rows_ * p_.columns > kCachedResult;
    for (int64_t c = 0; c < p_.columns; c += kPanel) {
      const int64_t columns = min_of(kPanel, p_.columns - c);
      update_rows<V>({left, p_.left_row, p_.left_step}, panel(n, depth, c, columns), depth, out + c,
                     p_.out_row, rows_, columns, update);
    }
  }

 private:
  static constexpr int64_t kPanel = V::kColumnVecs * V::kWidth;
  /// Numbers of a result that a second-level cache still holds when the next terms come.
  static constexpr int64_t kCachedResult = (int64_t{1} << 19) / static_cast<int64_t>(sizeof(T));
  /// Rows this far apart fall into few sets of a first-level cache and into a page each.
  static constexpr int64_t kFarApart = 2048 / static_cast<int64_t>(sizeof(T));
  /// Rows of the result for which a copy of a panel pays off.
  static constexpr int64_t kWorthCopying = 48;

  Right<T> panel(int64_t n, int64_t depth, int64_t c, int64_t columns) {
    const T* right = static_cast<const T*>(p_.right) + n * p_.right_row + c * p_.right_column;
    if (p_.right_column != 1 && p_.columns > 1) {
      pack_transposed<V, kPanel>(right, p_.right_column, columns, depth, T(1), panel_);
      return {panel_, kPanel};
    }
    const bool copies = p_.right_row >= kFarApart && rows_ >= kWorthCopying && columns == kPanel;
    if (!copies) return {right, p_.right_row};
    for (int64_t i = 0; i < depth; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPanel; v += V::kWidth) {
        V::store(panel_ + i * kPanel + v, V::load(right + i * p_.right_row + v));
      }
    }
    return {panel_, kPanel};
  }

  const ProductParams& p_;
  const int64_t first_, rows_;
  alignas(64) T panel_[kProductDepth * kPanel];
};

template <class V>
void matrix_product(const ProductParams& p, int64_t unit_begin, int64_t unit_end) {
  const int64_t end = min_of(unit_end * kProductRows, p.rows);
  for (int64_t first = unit_begin * kProductRows; first < end; first += kProductBlock) {
    ProductBlock<V> block(p, first, min_of(kProductBlock, end - first));
    // At least once: without a term the result is zeros.
    int64_t n = 0;
    do {
      block.step(n, min_of(kProductDepth, p.depth - n), p.add || n > 0);
      n += kProductDepth;
    } while (n < p.depth);
  }
}

}  // namespace
}  // namespace flash
