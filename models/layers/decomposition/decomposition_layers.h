#pragma once
// The layers of decomposition_transformer.h.

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/normalization.h>

#include "layers/common/feed_forward.h"
#include "layers/decomposition/decomposition_transformer.h"

namespace flash::models {

/// The four projections around the inner mechanism, or around exact attention.
class MechanismLayerImpl : public torch::nn::Module {
 public:
  /// Registers `mechanism` as `inner_correlation` if this layer is its `owner`.
  MechanismLayerImpl(const DecompositionTransformerOptions& options,
                     std::shared_ptr<InnerMechanism> mechanism, bool owner);

  /// x [B, T, D], memory [B, S, D] -> [B, T, D]
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& memory);

  /// The mechanism's, whether registered here or not.
  std::vector<torch::Tensor> mechanism_parameters() const { return mechanism_->parameters(); }

 private:
  torch::Tensor exact_attention(const torch::Tensor& x, const torch::Tensor& memory);

  AttentionChoice choice_;
  int64_t block_size_;
  AttentionProjections projections_;
  std::shared_ptr<InnerMechanism> mechanism_;
};

/// x + attention, its seasonal part + feed-forward, the seasonal part of that.
class DecompositionEncoderLayerImpl : public torch::nn::Module {
 public:
  DecompositionEncoderLayerImpl(const DecompositionTransformerOptions& options,
                                const InnerMechanisms& mechanisms, bool owner);

  /// x [B, T, D] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x);
  /// Of everything that `forward` uses.
  std::vector<torch::Tensor> used_parameters() const;

 private:
  double dropout_;
  int64_t window_;
  std::shared_ptr<MechanismLayerImpl> attention_;
  FeedForward feed_forward_;
};

struct DecoderState {
  torch::Tensor seasonal;  ///< [B, T, D]
  torch::Tensor trend;     ///< [B, h, outputs], what the layer adds to it
};

/// As the encoder's with cross-attention between the two; the three trends, projected by a circular
/// convolution of width 3, are a part of the forecast.
class DecompositionDecoderLayerImpl : public torch::nn::Module {
 public:
  DecompositionDecoderLayerImpl(const DecompositionTransformerOptions& options,
                                const InnerMechanisms& mechanisms, bool owner);

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

/// Layer norm less its mean over time (so that the norm's shift has no effect).
class SeasonalNormImpl : public torch::nn::Module {
 public:
  explicit SeasonalNormImpl(int64_t hidden_size);

  /// x [B, T, D] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x);
  /// linear(forward(x)) in the last `rows` rows.
  torch::Tensor project_last(const torch::Tensor& x, int64_t rows, torch::nn::Linear& linear);

 private:
  torch::nn::LayerNorm norm_{nullptr};
};

class DecompositionEncoderImpl : public torch::nn::Module {
 public:
  DecompositionEncoderImpl(const DecompositionTransformerOptions& options,
                           const InnerMechanisms& mechanisms);

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
                           const InnerMechanisms& mechanisms);

  /// x [B, T, D], memory [B, S, D] -> the forecast less its initial trend, [B, h, outputs].
  torch::Tensor forward(torch::Tensor x, const torch::Tensor& memory);

 private:
  bool recompute_;
  int64_t h_;
  std::vector<std::shared_ptr<DecompositionDecoderLayerImpl>> layers_;
  std::shared_ptr<SeasonalNormImpl> norm_;
  torch::nn::Linear projection_{nullptr};
};

}  // namespace flash::models
