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

/// out = a x + bias, for kVecs vectors of columns: `update_columns` with another epilogue.
template <class V, int kVecs, bool kTail>
[[gnu::noinline]] void biased_columns(Left<typename V::Scalar> a, Right<typename V::Scalar> x,
                                      int64_t depth, const typename V::Scalar* bias,
                                      typename V::Scalar* out, int64_t stride, int64_t rows,
                                      typename V::Mask tail) {
  using Reg = typename V::Reg;
  for_row_blocks<V::column_rows(kVecs)>(rows, [&]<int kRows>(int64_t r) {
    Reg tile[kRows][kVecs];
    clear<V>(tile);
    multiply_add<V, kRows, kVecs, kTail>(tile, a.from(r, 0), x, depth, tail);
    typename V::Scalar* row = out + r * stride;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const bool masked = kTail && v == kVecs - 1;
        const typename V::Scalar* const b = bias + v * V::kWidth;
        const Reg sum = V::add(tile[i][v], masked ? V::load(b, tail) : V::load(b));
        if (masked) {
          V::store(row + v * V::kWidth, sum, tail);
        } else {
          V::store(row + v * V::kWidth, sum);
        }
      }
      row = next_row(row, stride);
    }
  });
}

/// One cache block of rows of the result.
template <class V>
class ProductBlock {
 public:
  using T = typename V::Scalar;

  /// Rows of a block of the left matrix that is copied, to the stack.
  static constexpr int64_t kCopiedRows = 512 / static_cast<int64_t>(sizeof(T));

  ProductBlock(const ProductParams& p, int64_t first, int64_t rows)
      : p_(p), first_(first), rows_(rows) {}

  /// Whether blocks of the left matrix are copied, because it is a transposed matrix whose rows,
  /// each a term of the sum, evict each other before the next panel reads them. Then a block must
  /// have no more than kCopiedRows rows.
  static bool copies_left(const ProductParams& p) {
    return p.left_row == 1 && p.left_step % kSharedSets == 0 && p.left_step >= 2 * kFarApart &&
           p.depth >= kEvicting && p.columns > kPanel;
  }

  /// Adds terms n … n + depth - 1 to the result, or replaces it by them.
  void step(int64_t n, int64_t depth, bool add) {
    const T* const bias = n == 0 && !add ? static_cast<const T*>(p_.bias) : nullptr;
    const Left<T> rows = left(n, depth);
    T* out = static_cast<T*>(p_.out) + first_ * p_.out_row;
    Epilogue<T> epilogue = {add, T(1), nullptr, nullptr};
    epilogue.prefetch = rows_ * p_.columns > kCachedResult;
    for (int64_t c = 0; c < p_.columns; c += kPanel) {
      const int64_t columns = min_of(kPanel, p_.columns - c);
      const Right<T> right = panel(n, depth, c, columns);
      if (bias != nullptr) {
        add_to_bias(rows, right, depth, bias + c, out + c, columns);
      } else {
        update_rows<V>(rows, right, depth, out + c, p_.out_row, rows_, columns, epilogue);
      }
    }
  }

 private:
  static constexpr int64_t kPanel = V::kColumnVecs * V::kWidth;
  /// The largest result, in elements, that stays in the second-level cache between steps.
  static constexpr int64_t kCachedResult = (int64_t{1} << 19) / static_cast<int64_t>(sizeof(T));
  /// Rows this far apart have a page each.
  static constexpr int64_t kFarApart = 2048 / static_cast<int64_t>(sizeof(T));
  /// Rows a multiple of this apart share a quarter of the sets of the first-level cache, or fewer.
  static constexpr int64_t kSharedSets = 256 / static_cast<int64_t>(sizeof(T));
  /// Rows of a panel from which on those that share sets evict each other, together with the left
  /// matrix, before the next rows of the result read them.
  static constexpr int64_t kEvicting = 64;
  /// Rows of the result from which on copying a panel pays off.
  static constexpr int64_t kWorthCopying = 48;
  /// An odd number of cache lines, so that terms one after another do not share a set.
  static constexpr int64_t kLeftStep = kCopiedRows + 64 / static_cast<int64_t>(sizeof(T));

  // A panel of up to kPanel columns.
  void add_to_bias(Left<T> left, Right<T> right, int64_t depth, const T* bias, T* out,
                   int64_t columns) const {
    const int64_t tail = columns % V::kWidth;
    with_vecs<V::kColumnVecs>(static_cast<int>(ceil_div(columns, V::kWidth)), [&]<int kVecs>() {
      if (tail == 0) {
        biased_columns<V, kVecs, false>(left, right, depth, bias, out, p_.out_row, rows_,
                                        V::first(V::kWidth));
      } else {
        biased_columns<V, kVecs, true>(left, right, depth, bias, out, p_.out_row, rows_,
                                       V::first(tail));
      }
    });
  }

  Right<T> panel(int64_t n, int64_t depth, int64_t c, int64_t columns) {
    const T* right = static_cast<const T*>(p_.right) + n * p_.right_row + c * p_.right_column;
    if (p_.right_column != 1 && p_.columns > 1) {
      pack_transposed<V, kPanel>(right, p_.right_column, columns, depth, T(1), panel_);
      return {panel_, kPanel};
    }
    const bool evicted = p_.right_row % kSharedSets == 0 && depth >= kEvicting;
    const bool copies =
        (evicted || p_.right_row >= kFarApart) && rows_ >= kWorthCopying && columns == kPanel;
    if (!copies) return {right, p_.right_row};
    for (int64_t i = 0; i < depth; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPanel; v += V::kWidth) {
        V::store(panel_ + i * kPanel + v, V::load(right + i * p_.right_row + v));
      }
    }
    return {panel_, kPanel};
  }

  // The rows of the left matrix.
  Left<T> left(int64_t n, int64_t depth) {
    const T* terms = static_cast<const T*>(p_.left) + first_ * p_.left_row + n * p_.left_step;
    if (!copies_left(p_)) return {terms, p_.left_row, p_.left_step};
    for (int64_t i = 0; i < depth; ++i, terms += p_.left_step) {
      T* const to = left_ + i * kLeftStep;
      int64_t r = 0;
      for (; r + V::kWidth <= rows_; r += V::kWidth) V::store(to + r, V::load(terms + r));
      if (r < rows_) {
        const typename V::Mask tail = V::first(rows_ - r);
        V::store(to + r, V::load(terms + r, tail), tail);
      }
    }
    return {left_, 1, kLeftStep};
  }

  const ProductParams& p_;
  const int64_t first_, rows_;
  alignas(64) T panel_[kProductDepth * kPanel];
  alignas(64) T left_[kProductDepth * kLeftStep];
};

template <class V>
void matrix_product(const ProductParams& p, int64_t unit_begin, int64_t unit_end) {
  const int64_t end = min_of(unit_end * kProductRows, p.rows);
  const int64_t rows =
      ProductBlock<V>::copies_left(p) ? ProductBlock<V>::kCopiedRows : kProductBlock;
  for (int64_t first = unit_begin * kProductRows; first < end; first += rows) {
    ProductBlock<V> block(p, first, min_of(rows, end - first));
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
