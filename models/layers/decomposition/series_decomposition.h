#pragma once
// Series decomposition into trend and seasonal part (Wu et al., "Autoformer", arXiv:2106.13008,
// section 3.1, equation 1).

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <cstdint>

namespace flash::models {

struct SeriesParts {
  at::Tensor seasonal, trend;
};

// series [B, T, C], float32 or float64; `window` odd. The trend is the moving average over `window`
// steps, with the first and last step repeated beyond the ends; seasonal = series - trend. Forward
// and backward are one pass each, in time independent of `window`; nothing is kept for the
// backward. Differentiable once: a second derivative throws c10::NotImplementedError.

/// The seasonal part alone.
FLASH_API at::Tensor seasonal_part(const at::Tensor& series, int64_t window);

/// Both parts; `trend_before` [B, T, C], if defined, is added to the trend.
FLASH_API SeriesParts decompose_series(const at::Tensor& series, int64_t window,
                                       const at::Tensor& trend_before = {});

// The same of residual + dropout(x), a sum that is not stored if anything is dropped: `dropout` is
// the probability, and applies if `training`. Draws the same mask as `dropout_add`.

FLASH_API at::Tensor seasonal_part_of_sum(const at::Tensor& x, const at::Tensor& residual,
                                          double dropout, bool training, int64_t window);

FLASH_API SeriesParts decompose_series_sum(const at::Tensor& x, const at::Tensor& residual,
                                           double dropout, bool training, int64_t window,
                                           const at::Tensor& trend_before = {});

}  // namespace flash::models
