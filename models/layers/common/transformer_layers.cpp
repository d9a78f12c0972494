#include "layers/common/transformer_layers.h"

#include <torch/torch.h>

#include "layers/common/norms.h"

namespace flash::models {
namespace {

torch::nn::LayerNorm layer_norm(const TransformerLayerOptions& options) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.hidden_size}));
}

void register_feed_forward(FeedForward& feed_forward, torch::nn::Module& owner,
                           const TransformerLayerOptions& options) {
  feed_forward.register_in(owner, {.hidden_size = options.hidden_size,
                                   .inner_size = options.inner_size,
                                   .activation = options.activation,
                                   .dropout = options.dropout,
                                   .bias = true});
}

}  // namespace

void AttentionLayerImpl::reset() {
  projections_.register_in(*this, options_.hidden_size, options_.heads);
}

torch::Tensor AttentionLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& context) {
  return mechanism_->forward(projections_, x, context, is_training());
}

void EncoderLayerImpl::reset() {
  attention_ =
      register_module("attention", std::make_shared<AttentionLayerImpl>(options_, mechanism_));
  register_feed_forward(feed_forward_, *this, options_);
  norm1_ = register_module("norm1", layer_norm(options_));
  norm2_ = register_module("norm2", layer_norm(options_));
}

torch::Tensor EncoderLayerImpl::forward(const torch::Tensor& x) {
  const double dropout = options_.dropout;
  const bool training = is_training();
  const torch::Tensor attended =
      layer_normalized_sum(attention_->forward(x, x), x, dropout, training, *norm1_);
  return layer_normalized_sum(feed_forward_.forward(attended, training), attended, dropout,
                              training, *norm2_);
}

void DecoderLayerImpl::reset() {
  self_attention_ =
      register_module("self_attention", std::make_shared<AttentionLayerImpl>(options_, self_));
  cross_attention_ =
      register_module("cross_attention", std::make_shared<AttentionLayerImpl>(options_, cross_));
  register_feed_forward(feed_forward_, *this, options_);
  norm1_ = register_module("norm1", layer_norm(options_));
  norm2_ = register_module("norm2", layer_norm(options_));
  norm3_ = register_module("norm3", layer_norm(options_));
}

torch::Tensor DecoderLayerImpl::forward(torch::Tensor x, const torch::Tensor& memory,
                                        int64_t rows) {
  const double dropout = options_.dropout;
  const bool training = is_training();
  const auto last = [&](const torch::Tensor& t) { return t.slice(1, t.size(1) - rows); };
  x = layer_normalized_sum(self_attention_->forward(x, x), x, dropout, training, *norm1_);
  // ProbSparse attention compares all queries, so cross-attention needs every row. After it the
  // rows are independent.
  const torch::Tensor attended = cross_attention_->forward(x, memory);
  x = layer_normalized_sum(last(attended), last(x), dropout, training, *norm2_);
  return layer_normalized_sum(feed_forward_.forward(x, training), x, dropout, training, *norm3_);
}

}  // namespace flash::models
