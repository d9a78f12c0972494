#pragma once
// The transformer encoder of PatchTST, on patches as tokens.

#include <flash_attention/models/patchtst.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>

#include "layers/patchtst/patch_forecast.h"
#include "layers/patchtst/residual_attention.h"

namespace flash::models {

/// Batch norm over the last dimension of [B, T, D]. Its parameters are called `1.*`, because
/// neuralforecast puts it second in a Sequential, between two transposes.
class TokenBatchNormImpl : public torch::nn::Cloneable<TokenBatchNormImpl> {
 public:
  explicit TokenBatchNormImpl(int64_t features);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  /// forward(residual + dropout(x)); `dropout` applies if `training`.
  torch::Tensor of_sum(const torch::Tensor& x, const torch::Tensor& residual, double dropout,
                       bool training);
  FixedBatchNorm fixed() const;

 private:
  int64_t features_;
  torch::nn::BatchNorm1d norm_{nullptr};
};
TORCH_MODULE(TokenBatchNorm);

/// linear -> activation -> dropout -> linear. The linear layers are called `0` and `3`, because
/// neuralforecast's Sequential numbers activation and dropout too.
class PatchFeedForwardImpl : public torch::nn::Cloneable<PatchFeedForwardImpl> {
 public:
  explicit PatchFeedForwardImpl(const PatchTSTOptions& options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  LinearWeights inner() const { return {inner_->weight, inner_->bias}; }
  LinearWeights outer() const { return {outer_->weight, outer_->bias}; }

 private:
  PatchTSTOptions options_;
  torch::nn::Linear inner_{nullptr}, outer_{nullptr};
};
TORCH_MODULE(PatchFeedForward);

/// Attention and feed-forward, each with a residual connection and a batch norm.
class PatchEncoderLayerImpl : public torch::nn::Cloneable<PatchEncoderLayerImpl> {
 public:
  explicit PatchEncoderLayerImpl(const PatchTSTOptions& options);
  void reset() override;

  /// x [B, T, hidden_size] -> the same shape; for `history` see ResidualAttentionImpl::forward.
  torch::Tensor forward(torch::Tensor x, ScoreHistory& history);
  /// For patch_forecast.
  PatchLayer tensors() const;

 private:
  PatchTSTOptions options_;
  std::shared_ptr<ResidualAttentionImpl> attention_;
  TokenBatchNorm attention_norm_{nullptr}, feed_forward_norm_{nullptr};
  PatchFeedForward feed_forward_{nullptr};
};

/// The stack of layers.
class PatchEncoderImpl : public torch::nn::Cloneable<PatchEncoderImpl> {
 public:
  explicit PatchEncoderImpl(const PatchTSTOptions& options);
  void reset() override;

  /// x [B, T, hidden_size] -> the same shape.
  torch::Tensor forward(torch::Tensor x);
  /// For patch_forecast.
  std::vector<PatchLayer> layers() const;

 private:
  torch::Tensor recomputed(const std::shared_ptr<PatchEncoderLayerImpl>& layer,
                           const torch::Tensor& x, ScoreHistory& history) const;

  PatchTSTOptions options_;
  torch::nn::ModuleList layers_{nullptr};
};

}  // namespace flash::models
