#pragma once
// The product of two matrices, block by block.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

/// A unit: so many rows of the result.
constexpr int64_t kProductRows = 32;

/// Rows of the result that share what is read of the right matrix: of the left one, as many rows of
/// kProductDepth numbers are an eighth of a second-level cache of 1 MiB.
constexpr int64_t kProductBlock = 256;

/// Terms summed in registers: of the right matrix a panel of four AVX-512 vectors is then as large
/// as a first-level cache, and for chains see V::kLongestChain.
constexpr int64_t kProductDepth = 128;

inline WorkPlan product_plan(const ProductParams& p) {
  return {ceil_div(p.rows, kProductRows), 1, 2 * kProductRows * p.depth * p.columns};
}

template <class V>
void matrix_product(const ProductParams& p, int64_t unit_begin, int64_t unit_end) {
  using T = typename V::Scalar;
  const int64_t end = min_of(unit_end * kProductRows, p.rows);
  for (int64_t first = unit_begin * kProductRows; first < end; first += kProductBlock) {
    const T* left = static_cast<const T*>(p.left) + first * p.left_row;
    const T* right = static_cast<const T*>(p.right);
    T* out = static_cast<T*>(p.out) + first * p.out_row;
    const int64_t rows = min_of(kProductBlock, end - first);
    // At least once: without a term the result is zeros.
    int64_t n = 0;
    do {
      const RowUpdate<T> update = {p.add || n > 0, T(1), nullptr, nullptr};
      update_rows<V>({left + n * p.left_step, p.left_row, p.left_step},
                     {right + n * p.right_row, p.right_row}, min_of(kProductDepth, p.depth - n),
                     out, p.out_row, rows, p.columns, update);
      n += kProductDepth;
    } while (n < p.depth);
  }
}

}  // namespace
}  // namespace flash
