#pragma once
// The input of a model.

#include <ATen/core/Tensor.h>

#include <utility>

namespace flash::models {

/// A batch of windows: the tensors of neuralforecast's `windows_batch`, under its names. Absent
/// ones are undefined. All have the dtype of the parameters, float32 or float64. B windows, L =
/// input_size, horizon h, N series, and F, X, S future, historic and static exogenous columns.
///
///     model->forward(y);                                   // only the series, [B, L, 1]
///     model->forward({.insample_y = y, .futr_exog = f});   // and exogenous columns
struct WindowsBatch {
  at::Tensor insample_y = {};     ///< [B, L, 1]; iTransformer [B, L, N]
  at::Tensor insample_mask = {};  ///< like insample_y; no model reads it, as in neuralforecast
  at::Tensor futr_exog = {};      ///< [B, L + h, F], past and future; iTransformer [B, F, L + h, N]
  at::Tensor hist_exog = {};      ///< [B, L, X]
  at::Tensor stat_exog = {};      ///< [B, S]
};

}  // namespace flash::models
