#pragma once
// torch's layer norm and batch norm, with gradients that have the same bits on any number of
// threads: torch's own sum over the rows of each thread.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/normalization.h>

namespace flash::models {

/// norm(x) for a norm with weight and bias over the last dimension. Differentiable any number of
/// times.
FLASH_API at::Tensor layer_normalized(const at::Tensor& x, torch::nn::LayerNormImpl& norm);

/// norm(residual + dropout(x)) in one pass, for x and residual of one shape: `dropout` is the
/// probability, and applies if `training`. Draws the same mask as `dropout_add`. Differentiable
/// once if anything is dropped: then a second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor layer_normalized_sum(const at::Tensor& x, const at::Tensor& residual,
                                          double dropout, bool training,
                                          torch::nn::LayerNormImpl& norm);

/// norm(x) for rows x [R, D]. In training it updates the norm's running statistics, as torch does.
/// Differentiable any number of times.
FLASH_API at::Tensor batch_normalized(const at::Tensor& x, torch::nn::BatchNorm1dImpl& norm);

/// As layer_normalized_sum, for rows.
FLASH_API at::Tensor batch_normalized_sum(const at::Tensor& x, const at::Tensor& residual,
                                          double dropout, bool training,
                                          torch::nn::BatchNorm1dImpl& norm);

}  // namespace flash::models
