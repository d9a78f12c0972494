#pragma once
// Matrix products small enough for the caches, called from loops that have their factors there.

#include <cstdint>

namespace flash::models {

/// c = a b, or c += a b: c [rows, columns], a [rows, depth], b [depth, columns].
struct ProductSizes {
  int64_t rows, columns, depth;
  bool accumulate = false;
};

/// a(r, n) = data[r * row + n * step]: read a number at a time, in either order.
template <class T>
struct LeftFactor {
  const T* data;
  int64_t row, step;
};

/// Rows `stride` apart.
template <class T>
struct RowMatrix {
  T* data;
  int64_t stride;
};

/// A row of b is read in whole vectors: memory must go on up to so many numbers.
constexpr int64_t padded_row(int64_t columns) { return (columns + 15) / 16 * 16; }

void block_product(const ProductSizes& sizes, LeftFactor<float> a, RowMatrix<const float> b,
                   RowMatrix<float> c);
void block_product(const ProductSizes& sizes, LeftFactor<double> a, RowMatrix<const double> b,
                   RowMatrix<double> c);

}  // namespace flash::models
