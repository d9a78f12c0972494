#pragma once
// The encoder and decoder layers of Informer and iTransformer (Vaswani et al., arXiv:1706.03762),
// with post-norm.

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/normalization.h>

#include <memory>

#include "layers/common/attention_mechanism.h"
#include "layers/common/attention_projections.h"
#include "layers/common/feed_forward.h"

namespace flash::models {

/// Sizes and switches of a layer.
struct TransformerLayerOptions {
  int64_t hidden_size;
  int64_t heads;
  int64_t inner_size;  ///< of the feed-forward half
  Activation activation;
  double dropout;
};

/// The four projections and the mechanism between them.
class AttentionLayerImpl : public torch::nn::Cloneable<AttentionLayerImpl> {
 public:
  AttentionLayerImpl(const TransformerLayerOptions& options,
                     std::shared_ptr<const AttentionMechanism> mechanism)
      : options_(options), mechanism_(std::move(mechanism)) {
    reset();
  }
  void reset() override;
  /// x [B, L, D], context [B, S, D] -> [B, L, D]
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& context);

 private:
  TransformerLayerOptions options_;
  std::shared_ptr<const AttentionMechanism> mechanism_;
  AttentionProjections projections_;
};

/// norm2(x' + feed-forward(x')) with x' = norm1(x + attention(x)).
class EncoderLayerImpl : public torch::nn::Cloneable<EncoderLayerImpl> {
 public:
  EncoderLayerImpl(const TransformerLayerOptions& options,
                   std::shared_ptr<const AttentionMechanism> mechanism)
      : options_(options), mechanism_(std::move(mechanism)) {
    reset();
  }
  void reset() override;
  /// x [B, T, D] -> the same shape.
  torch::Tensor forward(const torch::Tensor& x);

 private:
  TransformerLayerOptions options_;
  std::shared_ptr<const AttentionMechanism> mechanism_;
  std::shared_ptr<AttentionLayerImpl> attention_;
  FeedForward feed_forward_;
  torch::nn::LayerNorm norm1_{nullptr}, norm2_{nullptr};
};

/// Self-attention, cross-attention to the encoder's output, feed-forward; a norm after each.
class DecoderLayerImpl : public torch::nn::Cloneable<DecoderLayerImpl> {
 public:
  DecoderLayerImpl(const TransformerLayerOptions& options,
                   std::shared_ptr<const AttentionMechanism> self,
                   std::shared_ptr<const AttentionMechanism> cross)
      : options_(options), self_(std::move(self)), cross_(std::move(cross)) {
    reset();
  }
  void reset() override;
  /// x [B, T, D], memory [B, S, D] -> the last `rows` steps, [B, rows, D]
  torch::Tensor forward(torch::Tensor x, const torch::Tensor& memory, int64_t rows);

 private:
  TransformerLayerOptions options_;
  std::shared_ptr<const AttentionMechanism> self_, cross_;
  std::shared_ptr<AttentionLayerImpl> self_attention_, cross_attention_;
  FeedForward feed_forward_;
  torch::nn::LayerNorm norm1_{nullptr}, norm2_{nullptr}, norm3_{nullptr};
};

}  // namespace flash::models
