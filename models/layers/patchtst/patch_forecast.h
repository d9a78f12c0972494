#pragma once
// PatchTST without autograd: a few windows at a time go through all layers, in memory that stays in
// the cache. A forecast of one window is some dozens of small products, beside which the calls of
// as many operators would take most of the time.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>
#include <flash_attention/layer_kernels.h>

#include <array>
#include <vector>

#include "layers/common/linear.h"

namespace flash::models {

/// A batch norm in evaluation mode.
struct FixedBatchNorm {
  at::Tensor weight, bias, mean, variance;  ///< [hidden]
  double epsilon;
};

/// A layer of the encoder.
struct PatchLayer {
  std::array<LinearWeights, 3> projections;  ///< of queries, keys and values
  LinearWeights merge;                       ///< of the heads' outputs
  LinearWeights inner, outer;                ///< feed-forward
  FixedBatchNorm attention_norm, feed_forward_norm;
  /// 0-d, of the scores; undefined: 1 / sqrt(head_dim). neuralforecast multiplies by it only where
  /// scores are added up.
  at::Tensor scale;
};

/// All of PatchTST.
struct PatchNetwork {
  LinearWeights embedding;  ///< of a patch
  at::Tensor position;      ///< [patches, hidden]
  std::vector<PatchLayer> layers;
  LinearWeights head;  ///< of all patches
  int64_t heads, stride;
  kernels::GatedActivation activation;
  bool adds_scores, norm_first;
  /// RevIN's factor and shift [1], undefined if it has none.
  bool normalizes, subtracts_last;
  at::Tensor affine_weight, affine_bias;
};

/// Whether patch_forecast computes this: without autograd, float32 or float64 windows [B, L] on the
/// CPU, and at most 64 patches.
FLASH_API bool fits_forecast(const PatchNetwork& network, const at::Tensor& windows);

/// The network in evaluation mode: windows [B, L] -> [B, outputs]. The same bits on any number of
/// threads, and for a window whatever others the batch has.
at::Tensor patch_forecast(const PatchNetwork& network, const at::Tensor& windows);

}  // namespace flash::models
