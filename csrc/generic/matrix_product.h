#pragma once
// The product of two matrices of any size, with cache blocking.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

/// Rows of the result in a unit of work.
constexpr int64_t kProductRows = 32;

/// The cache block of the left matrix: kProductBlock rows by kProductDepth terms, a quarter of a 1
/// MiB second-level cache. A panel of the right matrix takes a quarter of that.
constexpr int64_t kProductDepth = 256;
constexpr int64_t kProductBlock = 256;

inline WorkPlan product_plan(const ProductParams& p) {
  return {ceil_div(p.rows, kProductRows), 1, 2 * kProductRows * p.depth * p.columns};
}

/// One cache block of rows of the result.
template <class V>
class ProductBlock {
 public:
  using T = typename V::Scalar;

  ProductBlock(const ProductParams& p, int64_t first, int64_t rows)
      : p_(p), first_(first), rows_(rows) {}

  /// Adds terms n … n + depth - 1 to the result, or replaces it by them.
  void step(int64_t n, int64_t depth, bool add) {
    const T* left = static_cast<const T*>(p_.left) + first_ * p_.left_row + n * p_.left_step;
    T* out = static_cast<T*>(p_.out) + first_ * p_.out_row;
    Epilogue<T> epilogue = {add, T(1), nullptr, nullptr};
    epilogue.prefetch = rows_ * p_.columns > kCachedResult;
    for (int64_t c = 0; c < p_.columns; c += kPanel) {
      const int64_t columns = min_of(kPanel, p_.columns - c);
      update_rows<V>(Left<T>{left, p_.left_row, p_.left_step}, panel(n, depth, c, columns), depth,
                     out + c, p_.out_row, rows_, columns, epilogue);
    }
  }

 private:
  static constexpr int64_t kPanel = V::kColumnVecs * V::kWidth;
  /// The largest result, in elements, that stays in the second-level cache between steps.
  static constexpr int64_t kCachedResult = (int64_t{1} << 19) / static_cast<int64_t>(sizeof(T));
  /// Rows this far apart share few sets of the first-level cache and have a page each.
  static constexpr int64_t kFarApart = 2048 / static_cast<int64_t>(sizeof(T));
  /// Rows of the result from which on copying a panel pays off.
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
    // At least one step, because with a depth of 0 the result is 0.
    int64_t n = 0;
    do {
      block.step(n, min_of(kProductDepth, p.depth - n), p.add || n > 0);
      n += kProductDepth;
    } while (n < p.depth);
  }
}

}  // namespace
}  // namespace flash
