#pragma once
// The decomposition of a series into a moving average (the trend) and the rest (the seasonal part).
//
// Sums are kept in double, so that a row that enters a running sum and leaves it again causes no
// rounding error that matters, and none at all for float. The loops are plain, because compilers
// vectorize the conversions well.

#include "csrc/generic/lanes.h"
#include "csrc/generic/product.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

/// Channels processed together: their sums stay in the first-level cache, mostly in registers.
constexpr int64_t kAverageLanes = 64;

/// `decompose` for `width` <= kAverageLanes channels.
template <class T, bool kTrend, bool kBefore>
inline void decompose_lanes(const SeriesShape& shape, const T* x, const T* trend_before,
                            T* seasonal, T* trend, int64_t width) {
  const int64_t times = shape.times, stride = shape.channels, reach = shape.reach;
  const double factor = 1.0 / static_cast<double>(2 * reach + 1);
  const auto row = [&](int64_t t) { return x + max_of(0, min_of(t, times - 1)) * stride; };
  alignas(64) double sums[kAverageLanes] = {};
  const auto add = [&](int64_t t, double count) {
    const T* const entering = row(t);
#pragma GCC ivdep
    for (int64_t c = 0; c < width; ++c) {
      sums[c] = fused(count, static_cast<double>(entering[c]), sums[c]);
    }
  };
  // Rows past an end are copies of it, so a window of any reach costs at most the series length.
  if (reach > 0) add(0, static_cast<double>(reach));
  for (int64_t t = 0; t < min_of(reach, times); ++t) add(t, 1.0);
  if (reach > times) add(times - 1, static_cast<double>(reach - times));
  for (int64_t t = 0; t < times; ++t) {
    const T *const entering = row(t + reach), *const leaving = row(t - reach);
    const T* const here = x + t * stride;
    T* const out = seasonal + t * stride;
    T* const smooth = kTrend ? trend + t * stride : nullptr;
    const T* const before = kBefore ? trend_before + t * stride : nullptr;
#pragma GCC ivdep
    for (int64_t c = 0; c < width; ++c) {
      const double sum = sums[c] + static_cast<double>(entering[c]);
      sums[c] = sum - static_cast<double>(leaving[c]);
      out[c] = static_cast<T>(fused(-factor, sum, static_cast<double>(here[c])));
      if constexpr (kBefore) {
        smooth[c] = static_cast<T>(fused(factor, sum, static_cast<double>(before[c])));
      } else if constexpr (kTrend) {
        smooth[c] = static_cast<T>(factor * sum);
      }
    }
  }
}

/// average = moving average of x, with the first and last row repeated past the ends;
/// seasonal = x - average; trend = average + trend_before. trend may be null, and so may
/// trend_before, which means 0. No array may overlap another.
template <class T>
void decompose(const SeriesShape& shape, const T* x, const T* trend_before, T* seasonal, T* trend) {
  for (int64_t c = 0; c < shape.channels; c += kAverageLanes) {
    const int64_t width = min_of(kAverageLanes, shape.channels - c);
    if (trend == nullptr) {
      decompose_lanes<T, false, false>(shape, x + c, nullptr, seasonal + c, nullptr, width);
    } else if (trend_before == nullptr) {
      decompose_lanes<T, true, false>(shape, x + c, nullptr, seasonal + c, trend + c, width);
    } else {
      decompose_lanes<T, true, true>(shape, x + c, trend_before + c, seasonal + c, trend + c,
                                     width);
    }
  }
}

/// `decompose_backward` for `width` channels. kTrend: whether the trend has a gradient.
template <class T, bool kTrend>
class AverageAdjoint {
 public:
  AverageAdjoint(const SeriesShape& shape, const T* seasonal, const T* trend, T* result,
                 int64_t width)
      : times_(shape.times),
        stride_(shape.channels),
        reach_(shape.reach),
        width_(width),
        seasonal_(seasonal),
        trend_(trend),
        result_(result) {}

  void run() {
    for (int64_t t = 0; t < min_of(reach_, times_); ++t) add(sums_, t, 1);
    for (int64_t t = 0; t < times_; ++t) {
      const bool enters = t + reach_ < times_, leaves = t >= reach_;
      if (t == 0 || t == times_ - 1) {
        if (enters) add(sums_, t + reach_, 1);
        write_end(t);
        if (leaves) add(sums_, t - reach_, -1);
      } else if (enters) {
        leaves ? step<true, true>(t) : step<true, false>(t);
      } else {
        leaves ? step<false, true>(t) : step<false, false>(t);
      }
    }
  }

 private:
  /// trend_gradient - seasonal_gradient of time t.
  double given(int64_t t, int64_t c) const {
    const double taken = -static_cast<double>(seasonal_[t * stride_ + c]);
    if constexpr (kTrend) return taken + static_cast<double>(trend_[t * stride_ + c]);
    return taken;
  }
  void add(double* sums, int64_t t, double weight) const {
#pragma GCC ivdep
    for (int64_t c = 0; c < width_; ++c) sums[c] = fused(weight, given(t, c), sums[c]);
  }
  double with_direct(double sum, int64_t t, int64_t c) const {
    return fused(sum, factor_, static_cast<double>(seasonal_[t * stride_ + c]));
  }
  template <bool kEnters, bool kLeaves>
  void step(int64_t t) {
    T* const out = result_ + t * stride_;
#pragma GCC ivdep
    for (int64_t c = 0; c < width_; ++c) {
      double sum = sums_[c];
      if constexpr (kEnters) sum += given(t + reach_, c);
      out[c] = static_cast<T>(with_direct(sum, t, c));
      if constexpr (kLeaves) sum -= given(t - reach_, c);
      sums_[c] = sum;
    }
  }
  /// The first and last row also stand in for the rows past the ends.
  void write_end(int64_t t) {
    alignas(64) double sums[kAverageLanes];
    for (int64_t c = 0; c < width_; ++c) sums[c] = sums_[c];
    if (t == 0) {
      for (int64_t i = 0; i < min_of(reach_, times_); ++i) {
        add(sums, i, static_cast<double>(reach_ - i));
      }
    }
    if (t == times_ - 1) {
      for (int64_t i = max_of(0, times_ - reach_); i < times_; ++i) {
        add(sums, i, static_cast<double>(i + reach_ - times_ + 1));
      }
    }
    T* const out = result_ + t * stride_;
#pragma GCC ivdep
    for (int64_t c = 0; c < width_; ++c) out[c] = static_cast<T>(with_direct(sums[c], t, c));
  }

  const int64_t times_, stride_, reach_, width_;
  const double factor_ = 1.0 / static_cast<double>(2 * reach_ + 1);
  const T *const seasonal_, *const trend_;
  T* const result_;
  alignas(64) double sums_[kAverageLanes] = {};  // over the averages that read a row exactly once
};

/// x_gradient = seasonal_gradient + A^T (trend_gradient - seasonal_gradient), where A is the moving
/// average. trend_gradient may be null, which means 0.
template <class T>
void decompose_backward(const SeriesShape& shape, const T* seasonal_gradient,
                        const T* trend_gradient, T* x_gradient) {
  for (int64_t c = 0; c < shape.channels; c += kAverageLanes) {
    const int64_t width = min_of(kAverageLanes, shape.channels - c);
    if (trend_gradient == nullptr) {
      AverageAdjoint<T, false>(shape, seasonal_gradient + c, nullptr, x_gradient + c, width).run();
    } else {
      AverageAdjoint<T, true>(shape, seasonal_gradient + c, trend_gradient + c, x_gradient + c,
                              width)
          .run();
    }
  }
}

}  // namespace
}  // namespace flash
