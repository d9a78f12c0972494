#pragma once
// The elementwise part of the backward: weights P from scores, and score gradients dS from dP.
//
// Each function works on kVecs vectors of queries (the lanes) and some rows, one row per key. Rows
// of P and dS are BackwardScratch<V>::kStride elements apart.

#include <cstdint>
#include <limits>

#include "csrc/generic/backward_scratch.h"
#include "csrc/generic/exp.h"
#include "csrc/generic/tiles.h"

namespace flash {
namespace {

/// Turns scores into weights, in place: P = exp(S - row_max) * inverse_sum. With kMasked, the
/// weight of a masked key is 0 even if the row's statistics are NaN.
template <class V, int kVecs, bool kMasked>
[[gnu::noinline]] void weights_from_scores(const typename V::Scalar* row_max,
                                           const typename V::Scalar* inverse_sum, int64_t keys,
                                           typename V::Scalar* row) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int64_t kStride = BackwardScratch<V>::kStride;
  const Reg minus_inf = V::broadcast(-std::numeric_limits<T>::infinity());
  for (int v = 0; v < kVecs; ++v, row += V::kWidth) {
    const Reg max = V::load(row_max + v * V::kWidth);
    const Reg inverse = V::load(inverse_sum + v * V::kWidth);
    for_exp_groups<V>(
        keys, [&]<int kRows>(int64_t j) __attribute__((always_inline)) {
          T* first = row + j * kStride;
          Reg weight[kRows];
          each<kRows>([&](int i) { weight[i] = V::sub(V::load(first + i * kStride), max); });
          exp<V>(weight);
          each<kRows>([&](int i) {
            T* p = first + i * kStride;
            weight[i] = V::mul(weight[i], inverse);
            if constexpr (kMasked) {
              weight[i] = V::if_equal(V::load(p), minus_inf, V::zero(), weight[i]);
            }
            V::store(p, weight[i]);
          });
        });
  }
}

/// dS = P (dP - delta) of a register of weights. With kMasked, dS is 0 where the weight is 0. With
/// kDropout, the sign of a weight says that it is dropped: its dP is 0, and P becomes the weight
/// after dropout.
template <class V, bool kMasked, bool kDropout>
[[gnu::always_inline]] inline typename V::Reg score_gradient(typename V::Reg grad,
                                                             typename V::Reg delta,
                                                             typename V::Reg keep,
                                                             typename V::Scalar* weight) {
  typename V::Reg w = V::load(weight);
  if constexpr (kDropout) {
    const typename V::Reg signed_weight = w;
    grad = V::if_positive(signed_weight, grad);
    w = V::abs(w);
    V::store(weight, V::if_positive(signed_weight, V::mul(w, keep)));
  }
  const typename V::Reg ds = V::mul(w, V::sub(grad, delta));
  return kMasked ? V::if_equal(w, V::zero(), V::zero(), ds) : ds;
}

/// dS of a tile, formed as each register block of dP^T = V dO^T is complete. `grad_out` is dO^T,
/// [value_dim][lanes].
template <class V, int kVecs, bool kMasked, bool kDropout>
[[gnu::noinline]] void score_gradients(RowView<typename V::Scalar> values, int64_t keys,
                                       int64_t value_dim, Right<typename V::Scalar> grad_out,
                                       const typename V::Scalar* row_delta, double keep_scale,
                                       typename V::Scalar* weights,
                                       typename V::Scalar* grad_scores) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  constexpr int64_t kStride = BackwardScratch<V>::kStride;
  const Reg keep = V::broadcast(static_cast<T>(keep_scale));
  score_blocks<V, kVecs>(
      values.data, values.stride, keys, value_dim, grad_out,
      [&]<int kRows>(int64_t j, Reg(&tile)[kRows][kVecs]) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          const Reg delta = V::load(row_delta + v * W);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            V::store(grad_scores + (j + r) * kStride + v * W,
                     score_gradient<V, kMasked, kDropout>(tile[r][v], delta, keep,
                                                          weights + (j + r) * kStride + v * W));
          }
        }
      });
}

/// x *= factor for `keys` rows. A zero keeps its sign, whatever the factor is, and no other element
/// becomes -0, because -0 marks a masked one.
template <class V, int kVecs>
void multiply_rows(typename V::Scalar* x, const typename V::Scalar* factor, int64_t keys) {
  using Reg = typename V::Reg;
  constexpr int64_t kStride = BackwardScratch<V>::kStride;
  for (int64_t j = 0; j < keys; ++j, x += kStride, factor += kStride) {
    each<kVecs>([&](int v) {
      auto* at = x + v * V::kWidth;
      const Reg y = V::load(at);
      const Reg product = V::mul(y, V::load(factor + v * V::kWidth));
      V::store(at, V::if_equal(y, V::zero(), y, V::add(product, V::zero())));
    });
  }
}

/// Fills rows begin … end - 1 of both P and dS.
template <class V, int kVecs>
void fill_rows(int64_t begin, int64_t end, typename V::Reg x, typename V::Scalar* weights,
               typename V::Scalar* grad_scores) {
  constexpr int64_t kStride = BackwardScratch<V>::kStride;
  for (int64_t j = begin; j < end; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      V::store(weights + j * kStride + v * V::kWidth, x);
      V::store(grad_scores + j * kStride + v * V::kWidth, x);
    }
  }
}

}  // namespace
}  // namespace flash
