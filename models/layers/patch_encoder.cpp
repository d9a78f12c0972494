#include "layers/patch_encoder.h"

#include <torch/torch.h>

namespace flash::models {

TokenBatchNormImpl::TokenBatchNormImpl(int64_t features) : features_(features) { reset(); }

void TokenBatchNormImpl::reset() {
  norm_ = register_module("1", torch::nn::BatchNorm1d(features_));
}

torch::Tensor TokenBatchNormImpl::forward(const torch::Tensor& x) {
  // Statistics over batch and time together are those of a matrix's rows: no transpose needed.
  return norm_(x.flatten(0, 1)).view_as(x);
}

PatchEncoderLayerImpl::PatchEncoderLayerImpl(const PatchTSTOptions& options) : options_(options) {
  reset();
}

void PatchEncoderLayerImpl::reset() {
  const int64_t hidden = options_.hidden_size();
  const int64_t inner = options_.linear_hidden_size();
  const double dropout = options_.dropout();
  attention_ = register_module("self_attn",
                               std::make_shared<ResidualAttentionImpl>(ResidualAttentionOptions{
                                   .hidden_size = hidden,
                                   .heads = options_.n_heads(),
                                   .attention_dropout = options_.attn_dropout(),
                                   .output_dropout = dropout,
                                   .add_previous_scores = options_.res_attention(),
                                   .config = {.use_flash_attention = options_.use_flash_attention(),
                                              .flash_block_size = options_.flash_block_size()}}));
  attention_dropout_ = register_module("dropout_attn", torch::nn::Dropout(dropout));
  attention_norm_ = register_module("norm_attn", TokenBatchNorm(hidden));

  torch::nn::Sequential layers{torch::nn::Linear(hidden, inner)};
  if (options_.activation() == "relu") {
    layers->push_back(torch::nn::ReLU());
  } else {
    layers->push_back(torch::nn::GELU());
  }
  layers->push_back(torch::nn::Dropout(dropout));
  layers->push_back(torch::nn::Linear(inner, hidden));
  feed_forward_ = register_module("ff", layers);
  feed_forward_dropout_ = register_module("dropout_ffn", torch::nn::Dropout(dropout));
  feed_forward_norm_ = register_module("norm_ffn", TokenBatchNorm(hidden));
}

torch::Tensor PatchEncoderLayerImpl::forward(torch::Tensor x, ScoreHistory& history) {
  // With `batch_normalization` the norm comes first, and the residual adds to its result.
  const bool norm_first = options_.batch_normalization();
  if (norm_first) x = attention_norm_(x);
  x = x + attention_dropout_(attention_->forward(x, history));
  x = norm_first ? feed_forward_norm_(x) : attention_norm_(x);
  x = x + feed_forward_dropout_(feed_forward_->forward(x));
  return norm_first ? x : feed_forward_norm_(x);
}

PatchEncoderImpl::PatchEncoderImpl(const PatchTSTOptions& options) : options_(options) { reset(); }

void PatchEncoderImpl::reset() {
  layers_ = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < options_.encoder_layers(); ++i) {
    layers_->push_back(std::make_shared<PatchEncoderLayerImpl>(options_));
  }
}

torch::Tensor PatchEncoderImpl::forward(torch::Tensor x) {
  ScoreHistory history;
  for (const auto& layer : *layers_) {
    x = layer->as<PatchEncoderLayerImpl>()->forward(x, history);
  }
  return x;
}

}  // namespace flash::models
