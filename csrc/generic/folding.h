#pragma once
// A series of T times folded about its middle: sums x[t] + x[T - t] and differences x[t] - x[T - t]
// for t = 0 … T / 2. Time 0, and the middle one if T is even, are their own mirror image: there the
// sum is x[t] and the difference 0.

#include "csrc/generic/lanes.h"
#include "csrc/generic/product.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

/// Folds x [T, C] into sums and differences [steps, C], whose rows are `row` elements apart.
template <class V>
void fold(const FoldedShape& s, const typename V::Scalar* x, typename V::Scalar* sums,
          typename V::Scalar* differences) {
  using T = typename V::Scalar;
  for (int64_t t = 0; t < s.steps(); ++t) {
    const int64_t mirror = s.times - t;
    const bool once = t == 0 || t == mirror;
    const T *const here = x + t * s.channels, *const there = x + mirror * s.channels;
    T *const sum = sums + t * s.row, *const difference = differences + t * s.row;
    for_lanes<V>(
        s.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto a = lanes.load(here + c), b = once ? a : lanes.load(there + c);
          lanes.store(sum + c, once ? a : V::add(a, b));
          lanes.store(difference + c, once ? V::zero() : V::sub(a, b));
        });
  }
}

/// The adjoint of `fold`.
template <class V>
void unfold(const FoldedShape& s, const typename V::Scalar* sums,
            const typename V::Scalar* differences, typename V::Scalar* x) {
  using T = typename V::Scalar;
  for (int64_t t = 0; t < s.steps(); ++t) {
    const int64_t mirror = s.times - t;
    const bool once = t == 0 || t == mirror;
    const T *const sum = sums + t * s.row, *const difference = differences + t * s.row;
    T *const here = x + t * s.channels, *const there = x + mirror * s.channels;
    for_lanes<V>(
        s.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto a = lanes.load(sum + c);
          if (once) {
            lanes.store(here + c, a);
          } else {
            const auto b = lanes.load(difference + c);
            lanes.store(here + c, V::add(a, b));
            lanes.store(there + c, V::sub(a, b));
          }
        });
  }
}

/// `fold` for a series x [C, T], with the result [steps, C]: W channels by W times are transposed
/// in registers.
template <class V>
void fold_transposed(const FoldedShape& s, const typename V::Scalar* x, typename V::Scalar* sums,
                     typename V::Scalar* differences) {
  using T = typename V::Scalar;
  constexpr int W = V::kWidth;
  const int64_t pairs = (s.times - 1) / 2;
  for (int64_t first = 0; first < s.channels; first += W) {
    const int64_t count = min_of(W, s.channels - first);
    const T* const rows = x + first * s.times;
    T *const sum = sums + first, *const difference = differences + first;
    const auto fold_time = [&](int64_t t) {
      const bool once = t == 0 || 2 * t == s.times;
      for (int64_t i = 0; i < count; ++i) {
        const T a = rows[i * s.times + t], b = rows[i * s.times + (once ? t : s.times - t)];
        sum[t * s.row + i] = once ? a : a + b;
        difference[t * s.row + i] = once ? T(0) : a - b;
      }
    };
    fold_time(0);
    int64_t t = 1;
    if constexpr (W > 1) {
      for (; count == W && t + W <= pairs + 1; t += W) {
        // Times t … t + W - 1, and their mirror images, from the last to the first.
        const int64_t mirror = s.times - t - W + 1;
        typename V::Reg here[W], there[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) here[i] = V::load(rows + i * s.times + t);
        V::transpose(here);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) there[i] = V::load(rows + i * s.times + mirror);
        V::transpose(there);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          V::store(sum + (t + i) * s.row, V::add(here[i], there[W - 1 - i]));
          V::store(difference + (t + i) * s.row, V::sub(here[i], there[W - 1 - i]));
        }
      }
    }
    for (; t < s.steps(); ++t) fold_time(t);
  }
}

/// The adjoint of `fold` from sums and differences [C, steps], rows `row` apart, to x [C, T].
template <class T>
void unfold_rows(const FoldedShape& s, const T* sums, const T* differences, T* x) {
  const int64_t pairs = (s.times - 1) / 2;
  for (int64_t c = 0; c < s.channels; ++c) {
    const T *const sum = sums + c * s.row, *const difference = differences + c * s.row;
    T* const out = x + c * s.times;
    out[0] = sum[0];
    if (s.times % 2 == 0) out[s.times / 2] = sum[s.times / 2];
#pragma GCC ivdep
    for (int64_t t = 1; t <= pairs; ++t) out[t] = sum[t] + difference[t];
    T* const mirrored = out + s.times - pairs;
#pragma GCC ivdep
    for (int64_t i = 0; i < pairs; ++i) mirrored[i] = sum[pairs - i] - difference[pairs - i];
  }
}

}  // namespace
}  // namespace flash
