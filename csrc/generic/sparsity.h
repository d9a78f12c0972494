#pragma once
// Informer's measurement of query sparsity, from a few sampled keys per query, read in place.
//
// Dot products stand in lanes: those of V::kWidth keys with one query are formed as a register of
// partial sums each, and a transposition turns the lanes of each into one lane of a single register.

#include <cstdint>

#include "csrc/generic/product.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

constexpr int64_t kSparsityQueries = 32;  ///< a unit: so many queries of one head

inline WorkPlan sparsity_plan(const SparsityParams& p) {
  return {p.batch * p.heads * ceil_div(p.queries, kSparsityQueries), 1,
          2 * kSparsityQueries * p.samples * p.head_dim};
}

template <class V>
[[gnu::always_inline]] inline typename V::Reg dot_lanes(const typename V::Scalar* a,
                                                        const typename V::Scalar* b,
                                                        int64_t length) {
  typename V::Reg sum = V::zero();
  int64_t d = 0;
  for (; d + V::kWidth <= length; d += V::kWidth) sum = V::fma(V::load(a + d), V::load(b + d), sum);
  if (d < length) {
    const auto tail = V::first(length - d);
    sum = V::fma(V::load(a + d, tail), V::load(b + d, tail), sum);
  }
  return sum;
}

/// Lane r of what is returned joins the numbers of rows[r] by `join`, pair by pair.
template <class V, class Join>
[[gnu::always_inline]] inline typename V::Reg join_rows(
    const typename V::Scalar (&rows)[V::kWidth][V::kWidth], Join&& join) {
  typename V::Reg r[V::kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < V::kWidth; ++i) r[i] = V::load(rows[i]);
  V::transpose(r);
#pragma GCC unroll 4
  for (int half = V::kWidth / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) r[i] = join(r[i], r[i + half]);
  }
  return r[0];
}

/// Largest and sum of the scores of one query, spread over lanes.
template <class V>
inline void sample_scores(const SparsityParams& p, const typename V::Scalar* query,
                          const typename V::Scalar* keys, const int64_t* index,
                          typename V::Scalar* largest, typename V::Scalar* sum) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const Reg minus_inf = V::broadcast(-static_cast<T>(__builtin_inf()));
  alignas(64) T dots[W][W] = {};
  Reg top = minus_inf, total = V::zero();
  for (int64_t first = 0; first < p.samples; first += W) {
    const int64_t count = min_of(W, p.samples - first);
    for (int64_t j = 0; j < count; ++j) {
      V::store(dots[j], dot_lanes<V>(query, keys + index[first + j] * p.key.strides.row,
                                     p.head_dim));
    }
    // Lanes past the last sample: nothing to the sum, and never the largest.
    for (int64_t j = count; j < W; ++j) V::store(dots[j], V::zero());
    const Reg score = join_rows<V>(dots, [](Reg a, Reg b) { return V::add(a, b); });
    total = V::add(total, score);
    if (count == W) {
      top = V::max(score, top);
    } else {
      alignas(64) T lanes[W];
      V::store(lanes, score);
      for (int64_t j = count; j < W; ++j) lanes[j] = -static_cast<T>(__builtin_inf());
      top = V::max(V::load(lanes), top);
    }
  }
  V::store(largest, top);
  V::store(sum, total);
}

template <class V>
void sparsity(const SparsityParams& p, int64_t unit_begin, int64_t unit_end) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int64_t blocks = ceil_div(p.queries, kSparsityQueries);
  const Reg keys_total = V::broadcast(static_cast<T>(p.keys));
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t batch_head = unit / blocks;
    const int64_t batch = batch_head / p.heads, head = batch_head % p.heads;
    const T* query = static_cast<const T*>(p.query.data) + batch * p.query.strides.batch +
                     head * p.query.strides.head;
    const T* keys = static_cast<const T*>(p.key.data) + batch * p.key.strides.batch +
                    head * p.key.strides.head;
    T* out = static_cast<T*>(p.out) + batch_head * p.queries;
    const int64_t begin = unit % blocks * kSparsityQueries;
    const int64_t end = min_of(begin + kSparsityQueries, p.queries);
    for (int64_t first = begin; first < end; first += W) {
      const int64_t count = min_of(W, end - first);
      alignas(64) T largest[W][W] = {}, sum[W][W] = {};
      for (int64_t i = 0; i < count; ++i) {
        sample_scores<V>(p, query + (first + i) * p.query.strides.row, keys,
                         p.index + (first + i) * p.samples, largest[i], sum[i]);
      }
      const Reg top = join_rows<V>(largest, [](Reg a, Reg b) { return V::max(a, b); });
      const Reg total = join_rows<V>(sum, [](Reg a, Reg b) { return V::add(a, b); });
      const Reg measure = V::sub(top, V::div(total, keys_total));
      if (count == W) {
        V::store(out + first, measure);
      } else {
        V::store(out + first, measure, V::first(count));
      }
    }
  }
}

}  // namespace
}  // namespace flash
