#pragma once
// The layers of decomposition_transformer.h.

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/normalization.h>

#include "layers/common/feed_forward.h"
#include "layers/decomposition/decomposition_transformer.h"

namespace flash::models {

/// The four projections and the mechanism between them: the model's own, or exact attention.
class MechanismLayerImpl : public torch::nn::Module {
 public:
  /// Registers `mechanism` as `inner_correlation` if this layer is its `owner`, even where exact
  /// attention replaces it.
  MechanismLayerImpl(const DecompositionTransformerOptions& options,
                     std::shared_ptr<AttentionMechanism> mechanism, bool owner);

  /// x [B, T, D], memory [B, S, D] -> [B, T, D]
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& memory);

  /// The parameters of the mechanism, whether it is registered here or not.
  std::vector<torch::Tensor> mechanism_parameters() const { return mechanism_->parameters(); }

 private:
  AttentionProjections projections_;
  std::shared_ptr<AttentionMechanism> mechanism_;  // the model's own
  std::shared_ptr<AttentionMechanism> used_;
};

/// s = seasonal part of x + attention(x); the result is the seasonal part of s + feed-forward(s).
class DecompositionEncoderLayerImpl : public torch::nn::Module {
 public:
  DecompositionEncoderLayerImpl(const DecompositionTransformerOptions& options,
                                const SharedMechanisms& mechanisms, bool owner);

  /// x [B, T, D] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x);
  /// All parameters that `forward` uses.
  std::vector<torch::Tensor> used_parameters() const;

 private:
  double dropout_;
  int64_t window_;
  std::shared_ptr<MechanismLayerImpl> attention_;
  FeedForward feed_forward_;
};

struct DecoderState {
  torch::Tensor seasonal;  ///< [B, T, D]
  torch::Tensor trend;     ///< [B, h, outputs], the layer's contribution to the trend
};

/// Like the encoder layer, with cross-attention between the two steps. The sum of the three trends,
/// projected by a circular convolution of width 3, is a part of the forecast.
class DecompositionDecoderLayerImpl : public torch::nn::Module {
 public:
  DecompositionDecoderLayerImpl(const DecompositionTransformerOptions& options,
                                const SharedMechanisms& mechanisms, bool owner);

  /// x [B, T, D], memory [B, S, D]
  DecoderState forward(const torch::Tensor& x, const torch::Tensor& memory);
  std::vector<torch::Tensor> used_parameters() const;

 private:
  torch::Tensor project_trend(const torch::Tensor& trend) const;

  double dropout_;
  int64_t window_, h_;
  std::shared_ptr<MechanismLayerImpl> self_attention_, cross_attention_;
  FeedForward feed_forward_;
  torch::nn::Conv1d projection_{nullptr};
};

/// Layer norm minus its mean over time, so the norm's bias has no effect.
class SeasonalNormImpl : public torch::nn::Module {
 public:
  explicit SeasonalNormImpl(int64_t hidden_size);

  /// x [B, T, D] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x);
  /// The last `rows` steps of linear(forward(x)).
  torch::Tensor project_last(const torch::Tensor& x, int64_t rows, torch::nn::Linear& linear);

 private:
  torch::nn::LayerNorm norm_{nullptr};
};

class DecompositionEncoderImpl : public torch::nn::Module {
 public:
  DecompositionEncoderImpl(const DecompositionTransformerOptions& options,
                           const SharedMechanisms& mechanisms);

  /// x [B, T, D] -> the same shape.
  torch::Tensor forward(torch::Tensor x);

 private:
  bool recompute_;
  std::vector<std::shared_ptr<DecompositionEncoderLayerImpl>> layers_;
  std::shared_ptr<SeasonalNormImpl> norm_;
};

class DecompositionDecoderImpl : public torch::nn::Module {
 public:
  DecompositionDecoderImpl(const DecompositionTransformerOptions& options,
                           const SharedMechanisms& mechanisms);

  /// x [B, T, D], memory [B, S, D] -> the forecast without its initial trend, [B, h, outputs].
  torch::Tensor forward(torch::Tensor x, const torch::Tensor& memory);

 private:
  bool recompute_;
  int64_t h_;
  std::vector<std::shared_ptr<DecompositionDecoderLayerImpl>> layers_;
  std::shared_ptr<SeasonalNormImpl> norm_;
  torch::nn::Linear projection_{nullptr};
};

}  // namespace flash::models
