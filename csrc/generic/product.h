#pragma once
// The micro-kernel. Every matrix product of attention, forward and backward, is
//
//     tile[r][c] += sum over n of a(r, n) * x[n][c]
//
// where `tile` is an MR x NR register block of kRows rows by kVecs vectors, elements of `a` are
// loaded one at a time and broadcast, and rows of `x` are loaded as vectors, in place.
//
//   product        tile[r][c]          a(r, n)             x[n][c]
//   scores         S^T[key][query]     K[key][d]           Q^T[d][query]
//   dP             dP^T[key][query]    V[key][d]           dO^T[d][query]
//   output         O[query][d]         P^T[key][query]     V[key][d]
//   dQ             dQ[query][d]        dS^T[key][query]    K[key][d]
//   dV, dK         dV[key][d]          P^T, dS^T           dO, Q[query][d]

#include <cstdint>

namespace flash {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t multiple) { return ceil_div(a, multiple) * multiple; }

/// a(r, n) = data[r * row + n * step].
template <class T>
struct Left {
  const T* data;
  int64_t row;
  int64_t step;

  Left from(int64_t r, int64_t n) const { return {data + r * row + n * step, row, step}; }
};

/// a(r, n) = data[r + n * step]. Constant offsets of the rows leave registers free.
template <class T>
struct LeftColumns {
  const T* data;
  int64_t step;
  static constexpr int64_t row = 1;

  LeftColumns from(int64_t r, int64_t n) const { return {data + r + n * step, step}; }
};

/// x[n][c] = data[n * stride + c].
template <class T>
struct Right {
  const T* data;
  int64_t stride;
};

template <class V, int kRows, int kVecs>
[[gnu::always_inline]] inline void clear(typename V::Reg (&tile)[kRows][kVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) tile[r][v] = V::zero();
  }
}

/// Which factors a product uses. A masked weight is 0, but 0 * NaN is NaN. So where a tile has
/// masked keys, the rows of x are checked first, each block once (all_finite). If they contain NaN
/// or Inf, masked factors are marked as -0 (ScoreStage::mark_masked) and their terms skipped. No
/// row is computed twice, so no input takes more than twice the time of a finite one.
enum class Factors { kAll, kUnmasked };

/// Adds a product of `depth` terms to a register block. With kTail, the last vector of a row is
/// loaded through the mask `tail`, because memory may end right after it. `A` is Left or
/// LeftColumns.
template <class V, int kRows, int kVecs, bool kTail, Factors kFactors = Factors::kAll, class A>
[[gnu::always_inline]] inline void multiply_add(typename V::Reg (&tile)[kRows][kVecs], A a,
                                                Right<typename V::Scalar> x, int64_t depth,
                                                typename V::Mask tail) {
  const typename V::Scalar* left = a.data;
  const typename V::Scalar* right = x.data;
  const auto add_term = [&]() __attribute__((always_inline)) {
    typename V::Reg row[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const bool masked = kTail && v == kVecs - 1;
      row[v] = masked ? V::load(right + v * V::kWidth, tail) : V::load(right + v * V::kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename V::Reg factor = V::broadcast(left + r * a.row);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        tile[r][v] = kFactors == Factors::kAll
                         ? V::fma(factor, row[v], tile[r][v])
                         : V::fma_unless_minus_zero(factor, row[v], tile[r][v]);
      }
    }
    left += a.step;
    right += x.stride;
    // GCC 12 would sum two scalar terms at a time and read a row past the last of an odd number.
    if constexpr (V::kWidth == 1) asm("" : "+r"(right));
  };
  // Only whole blocks: remainders take little time, and unrolled they would take most of the code.
  if constexpr (V::kUnrollsTerms && kRows * kVecs >= 12) {
#pragma GCC unroll 4
    for (int64_t n = 0; n < depth; ++n) add_term();
  } else {
    for (int64_t n = 0; n < depth; ++n) add_term();
  }
}

/// Calls f.operator()<rows>(first_row) for blocks of kRows rows and then for the remainder.
template <int kRows, class F>
[[gnu::always_inline]] inline void for_row_blocks(int64_t rows, F&& f) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) f.template operator()<kRows>(r);
  if constexpr (kRows > 6) {
    if (r < rows) {
      for_row_blocks<6>(
          rows - r, [&]<int kRemainder>(int64_t i) { f.template operator()<kRemainder>(r + i); });
    }
  } else if constexpr (kRows > 1) {
    if (r < rows) {
      for_row_blocks<kRows - 1>(
          rows - r, [&]<int kRemainder>(int64_t i) { f.template operator()<kRemainder>(r + i); });
    }
  }
}

/// The next row of a register block in memory. The compiler must not see through it: it would keep
/// one pointer per vector of the block, all in memory, and advance each for every block.
template <class T>
[[gnu::always_inline]] inline T* next_row(T* row, int64_t stride) {
  row += stride;
  asm("" : "+r"(row));
  return row;
}

/// The epilogue of a product: how its register blocks are written to the rows of the output.
template <class T>
struct Epilogue {
  bool accumulate;        ///< add to the old output; else replace it, which need not be set
  T weight;               ///< multiplies the product; must be 1 if `rescale` is given
  const T* rescale;       ///< per row, multiplies the old output; null: 1
  const T* finish;        ///< per row, multiplies the result; null: 1
  bool prefetch = false;  ///< set if the output is probably not in any cache
};

/// tile[r] = rescale[r] * rows[r] + tile[r], or rows[r] + weight * tile[r] without `rescale`.
template <class V, int kRows, int kVecs, bool kTail>
[[gnu::always_inline]] inline void add_rows(typename V::Reg (&tile)[kRows][kVecs],
                                            const typename V::Scalar* rows, int64_t stride,
                                            Epilogue<typename V::Scalar> epilogue,
                                            typename V::Mask tail) {
  const auto row = [&](int v) {
    const typename V::Scalar* p = rows + v * V::kWidth;
    return kTail && v == kVecs - 1 ? V::load(p, tail) : V::load(p);
  };
  if (epilogue.rescale == nullptr) {
    const typename V::Reg weight = V::broadcast(epilogue.weight);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) tile[r][v] = V::fma(weight, tile[r][v], row(v));
      rows = next_row(rows, stride);
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const typename V::Reg f = V::broadcast(epilogue.rescale + r);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) tile[r][v] = V::fma(f, row(v), tile[r][v]);
    rows = next_row(rows, stride);
  }
}

/// The terms [begin, end) of the sum that may be nonzero, per row. A null pointer means no bound.
struct Terms {
  const int64_t* begin = nullptr;
  const int64_t* end = nullptr;

  Terms from_row(int64_t r) const {
    return {begin == nullptr ? nullptr : begin + r, end == nullptr ? nullptr : end + r};
  }
  /// The smallest range that contains the terms of rows 0 … kRows - 1.
  template <int kRows>
  void cover(int64_t* first, int64_t* last) const {
    if (begin != nullptr) {
      *first = begin[0];
      for (int r = 1; r < kRows; ++r) *first = min_of(*first, begin[r]);
    }
    if (end != nullptr) {
      *last = end[0];
      for (int r = 1; r < kRows; ++r) *last = max_of(*last, end[r]);
    }
  }
};

template <class V, int kRows, int kVecs, bool kTail, Factors kFactors = Factors::kAll, class A>
[[gnu::always_inline]] inline void micro_kernel(A a, Right<typename V::Scalar> x, int64_t depth,
                                                typename V::Scalar* out, int64_t stride,
                                                Epilogue<typename V::Scalar> epilogue,
                                                typename V::Mask tail) {
  using Reg = typename V::Reg;
  // The product starts from zero and the old output is added last; see V::kLongestChain.
  Reg tile[kRows][kVecs];
  clear<V>(tile);
  if (epilogue.prefetch) {
    typename V::Scalar* row = out;
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) __builtin_prefetch(row + v * V::kWidth, /*rw=*/1);
      row = next_row(row, stride);
    }
  }
  multiply_add<V, kRows, kVecs, kTail, kFactors>(tile, a, x, depth, tail);
  if (epilogue.accumulate) {
    add_rows<V, kRows, kVecs, kTail>(tile, out, stride, epilogue, tail);
  } else if (epilogue.weight != 1) {
    const Reg weight = V::broadcast(epilogue.weight);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) tile[r][v] = V::mul(weight, tile[r][v]);
    }
  }
  if (epilogue.finish != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Reg factor = V::broadcast(epilogue.finish + r);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) tile[r][v] = V::mul(factor, tile[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      if (kTail && v == kVecs - 1) {
        V::store(out + v * V::kWidth, tile[r][v], tail);
      } else {
        V::store(out + v * V::kWidth, tile[r][v]);
      }
    }
    out = next_row(out, stride);
  }
}

// All rows in one call: a call per register block would cost 50 cycles, an eighth of its work.
template <class V, int kVecs, bool kTail, Factors kFactors, class A>
[[gnu::noinline]] void update_columns(A a, Right<typename V::Scalar> x, int64_t depth,
                                      typename V::Scalar* out, int64_t stride, int64_t rows,
                                      Epilogue<typename V::Scalar> epilogue, Terms terms,
                                      typename V::Mask tail) {
  for_row_blocks<V::column_rows(kVecs)>(rows, [&]<int kRows>(int64_t r) {
    const Epilogue<typename V::Scalar> here = {
        epilogue.accumulate, epilogue.weight,
        epilogue.rescale == nullptr ? nullptr : epilogue.rescale + r,
        epilogue.finish == nullptr ? nullptr : epilogue.finish + r, epilogue.prefetch};
    int64_t first = 0, last = depth;
    terms.from_row(r).template cover<kRows>(&first, &last);
    micro_kernel<V, kRows, kVecs, kTail, kFactors>(
        a.from(r, first), {x.data + first * x.stride, x.stride}, last - first, out + r * stride,
        stride, here, tail);
  });
}

/// Calls f.operator()<vecs>(), which turns `vecs` <= kVecs into a compile-time constant.
template <int kVecs, class F>
[[gnu::always_inline]] inline void with_vecs(int vecs, F&& f) {
  if constexpr (kVecs > 1) {
    if (vecs < kVecs) return with_vecs<kVecs - 1>(vecs, f);
  }
  f.template operator()<kVecs>();
}

/// out[rows][columns] = epilogue(out, a x), row-major and in place, for any number of rows and
/// columns. Sums are chains of `depth` terms, so the depth should be one block of keys or queries.
template <class V, Factors kFactors = Factors::kAll, class A>
void update_rows(A a, Right<typename V::Scalar> x, int64_t depth, typename V::Scalar* out,
                 int64_t stride, int64_t rows, int64_t columns,
                 Epilogue<typename V::Scalar> epilogue, Terms terms = {}) {
  constexpr int64_t W = V::kWidth;
  constexpr int kMax = V::kColumnVecs;
  const typename V::Mask all = V::first(W);
  int64_t c = 0;
  for (; c + kMax * W <= columns; c += kMax * W) {
    update_columns<V, kMax, false, kFactors>(a, {x.data + c, x.stride}, depth, out + c, stride,
                                             rows, epilogue, terms, all);
  }
  const int64_t remainder = columns - c;
  if (remainder == 0) return;
  const Right<typename V::Scalar> last = {x.data + c, x.stride};
  const int64_t tail = remainder % W;
  with_vecs<kMax>(static_cast<int>(ceil_div(remainder, W)), [&]<int kVecs>() {
    if (tail == 0) {
      update_columns<V, kVecs, false, kFactors>(a, last, depth, out + c, stride, rows, epilogue,
                                                terms, all);
    } else {
      update_columns<V, kVecs, true, kFactors>(a, last, depth, out + c, stride, rows, epilogue,
                                               terms, V::first(tail));
    }
  });
}

/// `update_rows` with `factors` chosen at run time.
template <class V, class A>
void update_rows(Factors factors, A a, Right<typename V::Scalar> x, int64_t depth,
                 typename V::Scalar* out, int64_t stride, int64_t rows, int64_t columns,
                 Epilogue<typename V::Scalar> epilogue, Terms terms = {}) {
  if (factors == Factors::kAll) {
    update_rows<V>(a, x, depth, out, stride, rows, columns, epilogue, terms);
  } else {
    update_rows<V, Factors::kUnmasked>(a, x, depth, out, stride, rows, columns, epilogue, terms);
  }
}

/// out[c][r] = factor * rows[r][c] for `count` rows of `columns` elements. Rows of `out` have
/// kLanes elements; those past `count` are 0. Reads nothing past the end of a row.
template <class V, int kLanes>
void pack_transposed(const typename V::Scalar* rows, int64_t stride, int64_t count, int64_t columns,
                     typename V::Scalar factor, typename V::Scalar* out) {
  constexpr int W = V::kWidth;
  const typename V::Reg scale = V::broadcast(factor);
  // Packs W rows to their end before the next W. Rows a power of two apart share cache sets: W of
  // them fit, but all rows at once would evict each line before its second half is read.
  for (int lane = 0; lane < kLanes; lane += W) {
    int64_t c = 0;
    for (; lane + W <= count && c + W <= columns; c += W) {
      typename V::Reg block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        block[i] = V::mul(scale, V::load(rows + (lane + i) * stride + c));
      }
      V::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) V::store(out + (c + i) * kLanes + lane, block[i]);
    }
    for (; c < columns; c += W) {
      const int64_t width = min_of(W, columns - c);
      const typename V::Mask mask = V::first(width);
      typename V::Reg block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        const typename V::Scalar* row = rows + (lane + i) * stride + c;
        block[i] = lane + i >= count ? V::zero()
                   : width == W      ? V::mul(scale, V::load(row))
                                     : V::mul(scale, V::load(row, mask));
      }
      V::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (i < width) V::store(out + (c + i) * kLanes + lane, block[i]);
      }
    }
  }
}

}  // namespace
}  // namespace flash
