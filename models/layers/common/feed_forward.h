#pragma once
// The feed-forward half of a transformer layer.

#include <flash_attention/dropout.h>
#include <torch/nn/cloneable.h>

#include <string>

#include "layers/common/blocked_feed_forward.h"

namespace flash::models {

/// The activation "relu" or "gelu". Throws c10::ValueError, beginning with `model`, otherwise.
Activation activation_named(const std::string& model, const std::string& name);

/// A convolution of width 1 over time, weight [out, in, 1].
class PointwiseConvolutionImpl : public torch::nn::Cloneable<PointwiseConvolutionImpl> {
 public:
  PointwiseConvolutionImpl(int64_t in, int64_t out, bool bias) : in_(in), out_(out), bias_(bias) {
    reset();
  }
  void reset() override;
  /// As a linear layer.
  LinearWeights weights() const { return {weight_.squeeze(2), bias_values_}; }

 private:
  int64_t in_, out_;
  bool bias_;
  torch::Tensor weight_, bias_values_;
};

/// second(dropout(activation(first(x)))): x [.., in] -> [.., out]. With dropout above 0 it is
/// differentiable once.
torch::Tensor feed_forward(const torch::Tensor& x, const LinearWeights& first,
                           const LinearWeights& second, Activation activation, double dropout);

/// Sizes and switches of `FeedForward`.
struct FeedForwardOptions {
  int64_t hidden_size;
  int64_t inner_size;
  Activation activation;
  double dropout;
  bool bias;
};

/// conv2(dropout(activation(conv1(x)))). The convolutions are registered in the owner as `conv1`
/// and `conv2`, because neuralforecast has no module for the pair.
class FeedForward {
 public:
  /// Registers the convolutions in `owner`.
  void register_in(torch::nn::Module& owner, const FeedForwardOptions& options);

  /// x [B, T, hidden_size] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x, bool training) const;

 private:
  FeedForwardOptions options_{};
  std::shared_ptr<PointwiseConvolutionImpl> first_, second_;
};

}  // namespace flash::models
