#pragma once
// The loops behind series_decomposition.h over plain memory, compiled for several instruction sets.

#include <cstdint>

namespace flash::models {

/// One series [times, channels], contiguous, averaged over `reach` steps to either side.
struct SeriesShape {
  int64_t times, channels, reach;
};

// Each of these handles channels [begin, end) of one series.

/// average = moving average of x, the first and last row repeated beyond the ends;
/// seasonal = x - average, and, unless null, trend = average + trend_before (where that is not
/// null).
void decompose_loop(const SeriesShape& shape, const float* x, const float* trend_before,
                    float* seasonal, float* trend, int64_t begin, int64_t end);
void decompose_loop(const SeriesShape& shape, const double* x, const double* trend_before,
                    double* seasonal, double* trend, int64_t begin, int64_t end);

/// x_gradient = seasonal_gradient + the adjoint of the average, applied to
/// trend_gradient - seasonal_gradient (trend_gradient may be null).
void decompose_backward_loop(const SeriesShape& shape, const float* seasonal_gradient,
                             const float* trend_gradient, float* x_gradient, int64_t begin,
                             int64_t end);
void decompose_backward_loop(const SeriesShape& shape, const double* seasonal_gradient,
                             const double* trend_gradient, double* x_gradient, int64_t begin,
                             int64_t end);

}  // namespace flash::models
