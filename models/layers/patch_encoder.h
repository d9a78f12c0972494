#pragma once
// The transformer encoder of PatchTST, on patches as tokens.

#include <flash_attention/models/patchtst.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>

#include "layers/residual_attention.h"

namespace flash::models {

/// Batch norm over the last dimension of [B, T, D]; its parameters are called `1.*`, since Python
/// wraps it between two transposes.
class TokenBatchNormImpl : public torch::nn::Cloneable<TokenBatchNormImpl> {
 public:
  explicit TokenBatchNormImpl(int64_t features);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

 private:
  int64_t features_;
  torch::nn::BatchNorm1d norm_{nullptr};
};
TORCH_MODULE(TokenBatchNorm);

/// Attention and feed-forward, each with a residual connection and a batch norm.
class PatchEncoderLayerImpl : public torch::nn::Cloneable<PatchEncoderLayerImpl> {
 public:
  explicit PatchEncoderLayerImpl(const PatchTSTOptions& options);
  void reset() override;

  /// x [B, T, hidden_size] -> the same shape; `history` as in ResidualAttentionImpl::forward.
  torch::Tensor forward(torch::Tensor x, ScoreHistory& history);

 private:
  PatchTSTOptions options_;
  std::shared_ptr<ResidualAttentionImpl> attention_;
  torch::nn::Dropout attention_dropout_{nullptr}, feed_forward_dropout_{nullptr};
  TokenBatchNorm attention_norm_{nullptr}, feed_forward_norm_{nullptr};
  torch::nn::Sequential feed_forward_{nullptr};
};

/// The stack of layers.
class PatchEncoderImpl : public torch::nn::Cloneable<PatchEncoderImpl> {
 public:
  explicit PatchEncoderImpl(const PatchTSTOptions& options);
  void reset() override;

  /// x [B, T, hidden_size] -> the same shape.
  torch::Tensor forward(torch::Tensor x);

 private:
  PatchTSTOptions options_;
  torch::nn::ModuleList layers_{nullptr};
};

}  // namespace flash::models
