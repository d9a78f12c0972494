#pragma once
// The product of two matrices that fit the caches, without cache blocking.

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

/// kVecs vectors of columns. `update_columns` without its run-time options, whose checks per
/// register block would cost too much for sums of a few terms.
template <class V, int kVecs, bool kTail, bool kAdd>
[[gnu::noinline]] void block_columns(Left<typename V::Scalar> a, Right<typename V::Scalar> x,
                                     int64_t depth, typename V::Scalar* out, int64_t stride,
                                     int64_t rows, typename V::Mask tail) {
  for_row_blocks<V::column_rows(kVecs)>(rows, [&]<int kRows>(int64_t r) {
    micro_kernel<V, kRows, kVecs, kTail>(a.from(r, 0), x, depth, out + r * stride, stride,
                                         {kAdd, 1, nullptr, nullptr}, tail);
  });
}

template <class V, bool kAdd>
void block_product_as(const ProductParams& p) {
  using T = typename V::Scalar;
  constexpr int64_t W = V::kWidth;
  constexpr int64_t kPanel = V::kColumnVecs * W;
  const Left<T> left = {static_cast<const T*>(p.left), p.left_row, p.left_step};
  for (int64_t c = 0; c < p.columns; c += kPanel) {
    const int64_t columns = min_of(kPanel, p.columns - c), remainder = columns % W;
    const Right<T> right = {static_cast<const T*>(p.right) + c, p.right_row};
    T* const out = static_cast<T*>(p.out) + c;
    with_vecs<V::kColumnVecs>(static_cast<int>(ceil_div(columns, W)), [&]<int kVecs>() {
      if (remainder == 0) {
        block_columns<V, kVecs, false, kAdd>(left, right, p.depth, out, p.out_row, p.rows,
                                             V::first(W));
      } else {
        block_columns<V, kVecs, true, kAdd>(left, right, p.depth, out, p.out_row, p.rows,
                                            V::first(remainder));
      }
    });
  }
}

template <class V>
void block_product(const ProductParams& p) {
  p.add ? block_product_as<V, true>(p) : block_product_as<V, false>(p);
}

}  // namespace
}  // namespace flash
