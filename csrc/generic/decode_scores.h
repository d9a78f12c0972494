#pragma once
// Rows of keys for decoding: their dot products with a query. Decoding reads each element once, so
// what converts it and sums its products across lanes takes as long as the products themselves.

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "csrc/generic/decode_streams.h"
#include "csrc/generic/product.h"
#include "csrc/generic/stored_rows.h"

namespace flash {
namespace {

/// out = scale * row, in the order in which `products` loads the elements of a row.
template <class V, class Stored>
void order_query(const Stored* row, int64_t columns, typename V::Scalar scale,
                 typename V::Scalar* out) {
  const auto element = [&](int64_t c) {
    if constexpr (std::is_same_v<Stored, typename V::Scalar>) {
      return row[c];
    } else {
      return to_float(row[c]);
    }
  };
  constexpr int64_t W = V::kWidth;
  int64_t c = 0;
  if constexpr (kLoadsPairs<Stored>) {
    for (; c + 2 * W <= columns; c += 2 * W) {
      for (int64_t i = 0; i < W; ++i) {
        out[c + i] = scale * element(c + 2 * i);
        out[c + W + i] = scale * element(c + 2 * i + 1);
      }
    }
  }
  for (; c < columns; ++c) out[c] = scale * element(c);
}

/// The products of a query (see order_query) and a row, summed per lane.
template <class V, class Stored>
[[gnu::always_inline]] inline typename V::Reg products(const typename V::Scalar* query,
                                                       const Stored* row, int64_t columns) {
  using Reg = typename V::Reg;
  constexpr int64_t W = V::kWidth;
  Reg sum = V::zero();
  int64_t c = 0;
  if constexpr (kLoadsPairs<Stored>) {
    for (; c + 2 * W <= columns; c += 2 * W) {
      Reg even, odd;
      V::load_even_odd(row + c, even, odd);
      sum = V::fma(V::load(query + c), even, sum);
      sum = V::fma(V::load(query + c + W), odd, sum);
    }
  }
  for (; c + W <= columns; c += W) sum = V::fma(V::load(query + c), V::load(row + c), sum);
  const int64_t tail = columns - c;
  if (tail > 0) sum = V::fma(load_first<V>(query + c, tail), load_first<V>(row + c, tail), sum);
  return sum;
}

/// `products` of rows of kVecs vectors.
template <class V, int kVecs, class Stored>
[[gnu::always_inline]] inline typename V::Reg products(const typename V::Reg (&query)[kVecs],
                                                       const Stored* row) {
  using Reg = typename V::Reg;
  constexpr int kPaired = kLoadsPairs<Stored> ? kVecs / 2 * 2 : 0;
  Reg sum = V::zero();
  if constexpr (kPaired > 0) {
#pragma GCC unroll 8
    for (int v = 0; v < kPaired; v += 2) {
      Reg even, odd;
      V::load_even_odd(row + v * V::kWidth, even, odd);
      sum = V::fma(query[v], even, sum);
      sum = V::fma(query[v + 1], odd, sum);
    }
  }
#pragma GCC unroll 16
  for (int v = kPaired; v < kVecs; ++v) sum = V::fma(query[v], V::load(row + v * V::kWidth), sum);
  return sum;
}

constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

/// Sums across the lanes of the registers next() returns, called 2^kSteps times, in the order of
/// V::add_across; they are results of step kFirst - 1. Operands are added as soon as both exist, so
/// that few registers hold them.
template <class V, int kSteps, int kFirst = 0, class F>
[[gnu::always_inline]] inline typename V::Reg sums_across(F& next) {
  if constexpr (kSteps == 0) {
    return next();
  } else {
    const typename V::Reg first = sums_across<V, kSteps - 1, kFirst>(next);
    const typename V::Reg second = sums_across<V, kSteps - 1, kFirst>(next);
    return V::template add_across<kFirst + kSteps - 1>(first, second);
  }
}

/// Rows of one stream, and where their scores are written.
template <class T, class Stored>
struct ScoreStream {
  const Stored* row;
  T* scores;
};

/// scores[j] = product of the query and row j, j < keys, for each of kStreams streams. `keys` must
/// be a multiple of kWidth. The query stays in registers. Rows are read one by one: column by
/// column, reading from DRAM takes twice as long.
template <class V, int kVecs, int kStreams, class Stored>
[[gnu::noinline]] void row_products(
    const typename V::Scalar* query,
    const ScoreStream<typename V::Scalar, Stored> (&streams)[kStreams], int64_t stride,
    int64_t keys) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  constexpr auto kPiece = rows_of_piece(kVecs * W * static_cast<int64_t>(sizeof(Stored)));
  constexpr int kSteps = log2_of(kStreams == 1 || kPiece > W ? W : static_cast<int>(kPiece));
  constexpr int kPieces = W >> kSteps;
  const Stored* rows[kStreams];
  for (int s = 0; s < kStreams; ++s) rows[s] = streams[s].row;
  Reg in_registers[kVecs];
#pragma GCC unroll 16
  for (int v = 0; v < kVecs; ++v) in_registers[v] = V::load(query + v * W);
  for (int64_t j = 0; j < keys; j += W) {
    Reg sums[kStreams][kPieces];
#pragma GCC unroll 16
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma GCC unroll 2
      for (int s = 0; s < kStreams; ++s) {
        auto next_row = [&]() __attribute__((always_inline)) {
          const Reg sum = products<V>(in_registers, rows[s]);
          rows[s] += stride;
          // Keeps the compiler from loading later rows first.
          std::atomic_signal_fence(std::memory_order_acq_rel);
          return sum;
        };
        sums[s][piece] = sums_across<V, kSteps>(next_row);
      }
    }
#pragma GCC unroll 2
    for (int s = 0; s < kStreams; ++s) {
      int piece = 0;
      auto next_piece = [&]() __attribute__((always_inline)) { return sums[s][piece++]; };
      V::store(streams[s].scores + j, sums_across<V, log2_of(kPieces), kSteps>(next_piece));
    }
  }
}

/// scores[j] = product of the query and row j, j < keys, for rows of any width. The scores past
/// `keys`, up to a multiple of kWidth, are undefined.
template <class V, class Stored>
[[gnu::noinline]] void row_products(const typename V::Scalar* query, const Stored* row,
                                    int64_t stride, int64_t keys, int64_t columns,
                                    typename V::Scalar* scores) {
  for (int64_t j = 0; j < keys; j += V::kWidth) {
    int64_t left = keys - j;
    auto next_row = [&]() __attribute__((always_inline)) {
      const typename V::Reg sum = products<V>(query, row, columns);
      row += --left > 0 ? stride : 0;
      return sum;
    };
    V::store(scores + j, sums_across<V, log2_of(V::kWidth)>(next_row));
  }
}

/// Calls f.operator()<vecs>() if there is a `row_products` for rows of that many whole vectors, and
/// returns whether there is.
template <class V, class F>
bool with_whole_vecs(int64_t columns, F&& f) {
  constexpr int kMost = 8;
  if constexpr (V::kWidth > 1) {
    if (columns == 2 * kMost * V::kWidth) {
      f.template operator()<2 * kMost>();
      return true;
    }
    if (columns % V::kWidth == 0 && columns <= kMost * V::kWidth) {
      with_vecs<kMost>(static_cast<int>(columns / V::kWidth), f);
      return true;
    }
  }
  return false;
}

}  // namespace
}  // namespace flash
