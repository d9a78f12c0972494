#pragma once
// What is smooth in a series and what is left (Wu et al., "Autoformer", arXiv:2106.13008, section
// 3.1, equation 1).

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <cstdint>

namespace flash::models {

struct SeriesParts {
  at::Tensor seasonal, trend;
};

// series [B, T, C], float32 or float64; `window` odd. The trend is the moving average over `window`
// steps, the first and the last step repeated beyond the ends; seasonal = series - trend. One pass
// that takes as long for any window, and one in the backward, for which nothing is kept.
// Differentiable once: a second derivative throws c10::NotImplementedError.

/// The seasonal part alone.
FLASH_API at::Tensor seasonal_part(const at::Tensor& series, int64_t window);

/// Both parts; the trend is added to `trend_before` [B, T, C], unless that is undefined.
FLASH_API SeriesParts decompose_series(const at::Tensor& series, int64_t window,
                                       const at::Tensor& trend_before = {});

}  // namespace flash::models
