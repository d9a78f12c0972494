#pragma once
// What a forecaster sees of a batch of windows.

#include <ATen/core/Tensor.h>

#include <utility>

namespace flash::models {

/// The tensors of neuralforecast's `windows_batch`, under its names; what a model is not given
/// stays undefined. One dtype, float32 or float64, like the parameters. B windows, L = input_size,
/// horizon h, N series, and F, X, S future, historic and static exogenous columns.
///
///     model->forward(y);                                   // only the series, [B, L, 1]
///     model->forward({.insample_y = y, .futr_exog = f});   // and what is known of the future
struct WindowsBatch {
  at::Tensor insample_y = {};     ///< [B, L, 1]; iTransformer [B, L, N]
  at::Tensor insample_mask = {};  ///< as insample_y; no model reads it, as in neuralforecast
  at::Tensor futr_exog = {};      ///< [B, L + h, F], past and future; iTransformer [B, F, L + h, N]
  at::Tensor hist_exog = {};      ///< [B, L, X]
  at::Tensor stat_exog = {};      ///< [B, S]
};

}  // namespace flash::models
