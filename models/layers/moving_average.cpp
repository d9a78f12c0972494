#include "layers/moving_average.h"

#include <algorithm>

#include "layers/function_clones.h"

namespace flash::models {
namespace {

/// Channels whose sums are kept together: they stay in the first-level cache, mostly in registers.
constexpr int64_t kLanes = 64;

// Sums are kept in double: what enters a running sum and leaves it again then leaves no trace that
// matters, for float32 none at all.

template <class T>
inline __attribute__((always_inline)) void decompose(const SeriesShape& shape, const T* x,
                                                     const T* trend_before, T* seasonal, T* trend,
                                                     int64_t width) {
  const int64_t times = shape.times, stride = shape.channels, reach = shape.reach;
  const double factor = 1.0 / static_cast<double>(2 * reach + 1);
  const auto row = [&](int64_t t) { return x + std::clamp<int64_t>(t, 0, times - 1) * stride; };
  double sums[kLanes] = {};
  for (int64_t t = -reach; t < reach; ++t) {
    const T* const entering = row(t);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sums[c] += static_cast<double>(entering[c]);
  }
  for (int64_t t = 0; t < times; ++t) {
    const T* const entering = row(t + reach);
    const T* const leaving = row(t - reach);
    const T* const here = x + t * stride;
    T* const out = seasonal + t * stride;
    if (trend == nullptr) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const double sum = sums[c] + static_cast<double>(entering[c]);
        sums[c] = sum - static_cast<double>(leaving[c]);
        out[c] = static_cast<T>(static_cast<double>(here[c]) - sum * factor);
      }
    } else if (trend_before == nullptr) {
      T* const smooth = trend + t * stride;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const double sum = sums[c] + static_cast<double>(entering[c]);
        sums[c] = sum - static_cast<double>(leaving[c]);
        out[c] = static_cast<T>(static_cast<double>(here[c]) - sum * factor);
        smooth[c] = static_cast<T>(sum * factor);
      }
    } else {
      T* const smooth = trend + t * stride;
      const T* const before = trend_before + t * stride;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const double sum = sums[c] + static_cast<double>(entering[c]);
        sums[c] = sum - static_cast<double>(leaving[c]);
        out[c] = static_cast<T>(static_cast<double>(here[c]) - sum * factor);
        smooth[c] = static_cast<T>(sum * factor + static_cast<double>(before[c]));
      }
    }
  }
}

/// sums += weight * (trend_gradient - seasonal_gradient)
template <class T>
inline __attribute__((always_inline)) void add_row(double* sums, double weight, const T* seasonal,
                                                   const T* trend, int64_t width) {
  if (trend == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sums[c] -= weight * static_cast<double>(seasonal[c]);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      sums[c] += weight * (static_cast<double>(trend[c]) - static_cast<double>(seasonal[c]));
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void decompose_backward(const SeriesShape& shape,
                                                              const T* seasonal, const T* trend,
                                                              T* result, int64_t width) {
  const int64_t times = shape.times, stride = shape.channels, reach = shape.reach;
  const double factor = 1.0 / static_cast<double>(2 * reach + 1);
  const auto add = [&](double* sums, int64_t t, double weight) __attribute__((always_inline)) {
    add_row(sums, weight, seasonal + t * stride, trend ? trend + t * stride : nullptr, width);
  };
  const auto write = [&](const double* sums, int64_t t) __attribute__((always_inline)) {
    const T* const direct = seasonal + t * stride;
    T* const out = result + t * stride;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      out[c] = static_cast<T>(static_cast<double>(direct[c]) + sums[c] * factor);
    }
  };
  double sums[kLanes] = {};  // over the averages that read row t once
  for (int64_t t = 0; t < std::min(reach, times); ++t) add(sums, t, 1.0);
  for (int64_t t = 0; t < times; ++t) {
    if (t + reach < times) add(sums, t + reach, 1.0);
    if (t == 0 || t == times - 1) {
      // The first and the last row are read again in the place of those beyond the ends.
      double ends[kLanes];
      std::copy(sums, sums + width, ends);
      if (t == 0) {
        for (int64_t i = 0; i < std::min(reach, times); ++i) {
          add(ends, i, static_cast<double>(reach - i));
        }
      }
      if (t == times - 1) {
        for (int64_t i = std::max<int64_t>(0, times - reach); i < times; ++i) {
          add(ends, i, static_cast<double>(i + reach - times + 1));
        }
      }
      write(ends, t);
    } else {
      write(sums, t);
    }
    if (t - reach >= 0) add(sums, t - reach, -1.0);
  }
}

}  // namespace

#define FLASH_MOVING_AVERAGE_LOOPS(T)                                                           \
  FLASH_FUNCTION_CLONES                                                                         \
  void decompose_loop(const SeriesShape& shape, const T* x, const T* trend_before, T* seasonal, \
                      T* trend, int64_t begin, int64_t end) {                                   \
    for (int64_t c = begin; c < end; c += kLanes) {                                             \
      decompose(shape, x + c, trend_before ? trend_before + c : nullptr, seasonal + c,          \
                trend ? trend + c : nullptr, std::min(kLanes, end - c));                        \
    }                                                                                           \
  }                                                                                             \
  FLASH_FUNCTION_CLONES                                                                         \
  void decompose_backward_loop(const SeriesShape& shape, const T* seasonal_gradient,            \
                               const T* trend_gradient, T* x_gradient, int64_t begin,           \
                               int64_t end) {                                                   \
    for (int64_t c = begin; c < end; c += kLanes) {                                             \
      decompose_backward(shape, seasonal_gradient + c,                                          \
                         trend_gradient ? trend_gradient + c : nullptr, x_gradient + c,         \
                         std::min(kLanes, end - c));                                            \
    }                                                                                           \
  }
FLASH_MOVING_AVERAGE_LOOPS(float)
FLASH_MOVING_AVERAGE_LOOPS(double)

}  // namespace flash::models
