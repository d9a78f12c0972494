#pragma once
// The elementwise steps of gated residual networks, on rows of `width` elements. A backward adds
// its sums over rows to `sums`.

#include "csrc/denormals.h"
#include "csrc/generic/activations.h"
#include "csrc/generic/lanes.h"

namespace flash {
namespace {

template <class V, GatedActivation kActivation>
void activate_rows_as(typename V::Scalar* block, const typename V::Scalar* shift,
                      typename V::Scalar* argument, int64_t period, int64_t first, int64_t rows,
                      int64_t width) {
  for (int64_t row = 0; row < rows; ++row) {
    auto* const x = block + row * width;
    auto* const kept = argument == nullptr ? nullptr : argument + row * width;
    const auto* const s = shift + (first + row) % period * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          typename V::Reg y[1] = {V::add(lanes.load(x + c), lanes.load(s + c))};
          if (kActivation == GatedActivation::kGelu && kept != nullptr) lanes.store(kept + c, y[0]);
          activate<V, kActivation>(y);
          lanes.store(x + c, y[0]);
        });
  }
}

/// block = activation(block + shift[(first + row) % period]). For GELU, whose backward needs its
/// argument, block + shift is also stored to `argument` unless that is null.
template <class V>
void activate_rows(GatedActivation activation, typename V::Scalar* block,
                   const typename V::Scalar* shift, typename V::Scalar* argument, int64_t period,
                   int64_t first, int64_t rows, int64_t width) {
  const FlushDenormals flush;
  with_activation(activation, [&]<GatedActivation kActivation>() {
    activate_rows_as<V, kActivation>(block, shift, argument, period, first, rows, width);
  });
}

template <class V, GatedActivation kActivation>
void activate_rows_backward_as(typename V::Scalar* gradient, const typename V::Scalar* forward,
                               typename V::Scalar* sums, int64_t period, int64_t first,
                               int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row) {
    auto* const g = gradient + row * width;
    const auto* const y = forward + row * width;
    auto* const sum = sums + (first + row) % period * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          typename V::Reg slope[1] = {lanes.load(y + c)};
          derivative<V, kActivation>(slope);
          const auto product = V::mul(lanes.load(g + c), slope[0]);
          lanes.store(g + c, product);
          lanes.store(sum + c, V::add(lanes.load(sum + c), product));
        });
  }
}

/// gradient *= activation', and sums[(first + row) % period] += gradient. `forward` is the result
/// of the forward, or its argument for GELU.
template <class V>
void activate_rows_backward(GatedActivation activation, typename V::Scalar* gradient,
                            const typename V::Scalar* forward, typename V::Scalar* sums,
                            int64_t period, int64_t first, int64_t rows, int64_t width) {
  const FlushDenormals flush;
  with_activation(activation, [&]<GatedActivation kActivation>() {
    activate_rows_backward_as<V, kActivation>(gradient, forward, sums, period, first, rows, width);
  });
}

/// block = (block + bias) * factors, where a factor is 0 (dropped) or 1 / (1 - p); null means 1.
/// Dropped elements become -0.0 and no others do, so that the backward can read the mask from them.
template <class V>
void drop_rows(typename V::Scalar* block, const typename V::Scalar* bias,
               const typename V::Scalar* factors, int64_t rows, int64_t width) {
  using T = typename V::Scalar;
  const auto dropped = V::broadcast(T(-0.0));
  for (int64_t row = 0; row < rows; ++row) {
    T* const x = block + row * width;
    const T* const f = factors == nullptr ? nullptr : factors + row * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto sum = V::add(lanes.load(x + c), lanes.load(bias + c));
          if (f == nullptr) {
            lanes.store(x + c, V::add(sum, V::zero()));  // -0.0 + 0.0 is 0.0
          } else {
            const auto factor = lanes.load(f + c);
            const auto kept = V::add(V::mul(sum, factor), V::zero());
            lanes.store(x + c, V::if_less(V::zero(), factor, kept, dropped));
          }
        });
  }
}

/// gradient *= factor, or 0 where `dropped` is -0.0; sums[width] += gradient.
template <class V>
void drop_rows_backward(typename V::Scalar* gradient, const typename V::Scalar* dropped,
                        typename V::Scalar factor, typename V::Scalar* sums, int64_t rows,
                        int64_t width) {
  using T = typename V::Scalar;
  const auto scale = V::broadcast(factor);
  for (int64_t row = 0; row < rows; ++row) {
    T* const g = gradient + row * width;
    const T* const y = dropped + row * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto value = lanes.load(y + c), product = V::mul(lanes.load(g + c), scale);
          const auto kept = V::if_equal(value, V::zero(), V::if_positive(value, product), product);
          lanes.store(g + c, kept);
          lanes.store(sums + c, V::add(lanes.load(sums + c), kept));
        });
  }
}

/// out[row] = x[row] * factor + shift. x has one element per row, `x_stride` apart; factor and
/// shift are [width].
template <class V>
void outer_rows(typename V::Scalar* out, const typename V::Scalar* x, int64_t x_stride,
                const typename V::Scalar* factor, const typename V::Scalar* shift, int64_t rows,
                int64_t width) {
  for (int64_t row = 0; row < rows; ++row) {
    const auto value = V::broadcast(x + row * x_stride);
    typename V::Scalar* const o = out + row * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          lanes.store(o + c, V::fma(value, lanes.load(factor + c), lanes.load(shift + c)));
        });
  }
}

/// The backward of `outer_rows`: adds the gradients of factor and shift to sums [2, width], and
/// that of x to x_gradient [rows].
template <class V>
void outer_rows_backward(const typename V::Scalar* gradient, const typename V::Scalar* x,
                         int64_t x_stride, const typename V::Scalar* factor,
                         typename V::Scalar* x_gradient, int64_t x_gradient_stride,
                         typename V::Scalar* sums, int64_t rows, int64_t width) {
  using T = typename V::Scalar;
  T *const factor_sum = sums, *const shift_sum = sums + width;
  for (int64_t row = 0; row < rows; ++row) {
    const T* const g = gradient + row * width;
    const auto value = V::broadcast(x + row * x_stride);
    auto dot = V::zero();
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto here = lanes.load(g + c);
          lanes.store(factor_sum + c, V::fma(here, value, lanes.load(factor_sum + c)));
          lanes.store(shift_sum + c, V::add(here, lanes.load(shift_sum + c)));
          dot = V::fma(here, lanes.load(factor + c), dot);
        });
    x_gradient[row * x_gradient_stride] += sum_of_lanes<V>(dot);
  }
}

}  // namespace
}  // namespace flash
