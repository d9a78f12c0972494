#pragma once
// Informer's sparsity measurement of queries, on a few sampled keys per query that are read in
// place.
//
// The (query, sample) pairs of a unit form one list. The dot products of V::kWidth pairs are formed
// as one register of partial sums each; a transpose and additions then give one lane per pair.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

constexpr int64_t kSparsityQueries = 32;  ///< queries of one head in a unit of work

inline WorkPlan sparsity_plan(const SparsityParams& p) {
  return {p.batch * p.heads * ceil_div(p.queries, kSparsityQueries), 1,
          2 * kSparsityQueries * p.samples * p.head_dim};
}

/// The partial sums of a dot product of `length` elements: kVecs whole vectors, or any length if
/// kVecs is 0.
template <class V, int kVecs>
[[gnu::always_inline]] inline typename V::Reg dot_lanes(const typename V::Scalar* a,
                                                        const typename V::Scalar* b,
                                                        int64_t length) {
  constexpr int W = V::kWidth;
  typename V::Reg sum = V::zero();
  if constexpr (kVecs > 0) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum = V::fma(V::load(a + v * W), V::load(b + v * W), sum);
  } else {
    int64_t d = 0;
    for (; d + W <= length; d += W) sum = V::fma(V::load(a + d), V::load(b + d), sum);
    if (d < length) {
      const auto tail = V::first(length - d);
      sum = V::fma(V::load(a + d, tail), V::load(b + d, tail), sum);
    }
  }
  return sum;
}

/// sums[r] = sum of rows[r].
template <class V>
[[gnu::always_inline]] inline void add_rows(const typename V::Scalar (&rows)[V::kWidth][V::kWidth],
                                            typename V::Scalar (&sums)[V::kWidth]) {
  typename V::Reg r[V::kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < V::kWidth; ++i) r[i] = V::load(rows[i]);
  V::transpose(r);
#pragma GCC unroll 4
  for (int half = V::kWidth / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) r[i] = V::add(r[i], r[i + half]);
  }
  V::store(sums, r[0]);
}

/// Queries [0, queries) of one head.
template <class V, int kVecs>
inline void measure_queries(const SparsityParams& p, const typename V::Scalar* query,
                            const typename V::Scalar* keys, const int64_t* index, int64_t queries,
                            typename V::Scalar* out) {
  using T = typename V::Scalar;
  constexpr int W = V::kWidth;
  constexpr T kMinusInf = -static_cast<T>(__builtin_inf());
  alignas(64) T rows[W][W] = {}, scores[W];
  const int64_t pairs = queries * p.samples;
  int64_t formed = 0;   // samples of the current query whose dot products are formed
  int64_t reduced = 0;  // samples that `largest` and `sum` include
  T largest = kMinusInf, sum = 0;
  for (int64_t first = 0; first < pairs; first += W) {
    const int64_t count = min_of(W, pairs - first);
    for (int64_t i = 0; i < count; ++i) {
      const T* key = keys + index[first + i] * p.key.strides.row;
      V::store(rows[i], dot_lanes<V, kVecs>(query, key, p.head_dim));
      if (++formed == p.samples) {
        formed = 0;
        query += p.query.strides.row;
      }
    }
    add_rows<V>(rows, scores);
    for (int64_t i = 0; i < count; ++i) {
      largest = scores[i] > largest ? scores[i] : largest;
      sum += scores[i];
      if (++reduced == p.samples) {
        *out++ = largest - sum / static_cast<T>(p.keys);
        reduced = 0;
        largest = kMinusInf;
        sum = 0;
      }
    }
  }
}

template <class V>
void sparsity(const SparsityParams& p, int64_t unit_begin, int64_t unit_end) {
  using T = typename V::Scalar;
  constexpr int kMaxVecs = 4;
  const bool whole =
      p.head_dim > 0 && p.head_dim % V::kWidth == 0 && p.head_dim <= kMaxVecs * V::kWidth;
  const int64_t blocks = ceil_div(p.queries, kSparsityQueries);
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t batch_head = unit / blocks;
    const int64_t batch = batch_head / p.heads, head = batch_head % p.heads;
    const int64_t first = unit % blocks * kSparsityQueries;
    const int64_t count = min_of(kSparsityQueries, p.queries - first);
    const T* query = static_cast<const T*>(p.query.data) + batch * p.query.strides.batch +
                     head * p.query.strides.head + first * p.query.strides.row;
    const T* keys =
        static_cast<const T*>(p.key.data) + batch * p.key.strides.batch + head * p.key.strides.head;
    const int64_t* index = p.index + first * p.samples;
    T* out = static_cast<T*>(p.out) + batch_head * p.queries + first;
    if (whole) {
      with_vecs<kMaxVecs>(static_cast<int>(p.head_dim / V::kWidth), [&]<int kVecs>() {
        measure_queries<V, kVecs>(p, query, keys, index, count, out);
      });
    } else {
      measure_queries<V, 0>(p, query, keys, index, count, out);
    }
  }
}

}  // namespace
}  // namespace flash
