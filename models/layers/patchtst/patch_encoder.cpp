#include "layers/patchtst/patch_encoder.h"

#include <flash_attention/dropout.h>
#include <flash_attention/models/gradient_checkpoint.h>
#include <torch/torch.h>

#include "layers/common/feed_forward.h"
#include "layers/common/norms.h"

namespace flash::models {

TokenBatchNormImpl::TokenBatchNormImpl(int64_t features) : features_(features) { reset(); }

void TokenBatchNormImpl::reset() {
  norm_ = register_module("1", torch::nn::BatchNorm1d(features_));
}

torch::Tensor TokenBatchNormImpl::forward(const torch::Tensor& x) {
  // Statistics over batch and time equal those over the rows of a matrix, so no transpose is
  // needed.
  return batch_normalized(x.flatten(0, 1), *norm_).view_as(x);
}

torch::Tensor TokenBatchNormImpl::of_sum(const torch::Tensor& x, const torch::Tensor& residual,
                                         double dropout, bool training) {
  return batch_normalized_sum(x.flatten(0, 1), residual.flatten(0, 1), dropout, training, *norm_)
      .view_as(x);
}

FixedBatchNorm TokenBatchNormImpl::fixed() const {
  return {.weight = norm_->weight,
          .bias = norm_->bias,
          .mean = norm_->running_mean,
          .variance = norm_->running_var,
          .epsilon = norm_->options.eps()};
}

PatchFeedForwardImpl::PatchFeedForwardImpl(const PatchTSTOptions& options) : options_(options) {
  reset();
}

void PatchFeedForwardImpl::reset() {
  const int64_t hidden = options_.hidden_size();
  const int64_t inner = options_.linear_hidden_size();
  inner_ = register_module("0", torch::nn::Linear(hidden, inner));
  outer_ = register_module("3", torch::nn::Linear(inner, hidden));
}

torch::Tensor PatchFeedForwardImpl::forward(const torch::Tensor& x) {
  const auto activation = options_.activation() == "relu" ? Activation::kRelu : Activation::kGelu;
  return feed_forward(x, {inner_->weight, inner_->bias}, {outer_->weight, outer_->bias}, activation,
                      is_training() ? options_.dropout() : 0.0);
}

PatchEncoderLayerImpl::PatchEncoderLayerImpl(const PatchTSTOptions& options) : options_(options) {
  reset();
}

void PatchEncoderLayerImpl::reset() {
  const int64_t hidden = options_.hidden_size();
  attention_ =
      register_module("self_attn", std::make_shared<ResidualAttentionImpl>(ResidualAttentionOptions{
                                       .hidden_size = hidden,
                                       .heads = options_.n_heads(),
                                       .attention_dropout = options_.attn_dropout(),
                                       .add_previous_scores = options_.res_attention(),
                                       .config = options_.config()}));
  attention_norm_ = register_module("norm_attn", TokenBatchNorm(hidden));
  feed_forward_ = register_module("ff", PatchFeedForward(options_));
  feed_forward_norm_ = register_module("norm_ffn", TokenBatchNorm(hidden));
}

torch::Tensor PatchEncoderLayerImpl::forward(torch::Tensor x, ScoreHistory& history) {
  const double dropout = options_.dropout();
  // neuralforecast applies dropout twice to the attention's output. An element survives both with
  // the product of the probabilities and is scaled by its inverse, which is a single dropout.
  const double twice = 1.0 - (1.0 - dropout) * (1.0 - dropout);
  // With `batch_normalization` the norm comes first, and the residual connection starts after it.
  const bool norm_first = options_.batch_normalization(), training = is_training();
  if (norm_first) x = attention_norm_(x);
  TokenBatchNorm& second = norm_first ? feed_forward_norm_ : attention_norm_;
  x = second->of_sum(attention_->forward(x, history), x, twice, training);
  const torch::Tensor branch = feed_forward_(x);
  return norm_first ? dropout_add(branch, x, dropout, training)
                    : feed_forward_norm_->of_sum(branch, x, dropout, training);
}

PatchLayer PatchEncoderLayerImpl::tensors() const {
  return {.projections = attention_->projections(),
          .merge = attention_->merge(),
          .inner = feed_forward_->inner(),
          .outer = feed_forward_->outer(),
          .attention_norm = attention_norm_->fixed(),
          .feed_forward_norm = feed_forward_norm_->fixed(),
          .scale = attention_->scale()};
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
  // With checkpointing, layers do not append to shared memory: a layer that is recomputed in the
  // backward would overwrite what later layers have read.
  if (!options_.gradient_checkpointing()) history.layers = options_.encoder_layers();
  for (const auto& module : *layers_) {
    const auto layer = std::static_pointer_cast<PatchEncoderLayerImpl>(module);
    x = options_.gradient_checkpointing() ? recomputed(layer, x, history)
                                          : layer->forward(x, history);
  }
  return x;
}

std::vector<PatchLayer> PatchEncoderImpl::layers() const {
  std::vector<PatchLayer> found;
  for (const auto& module : *layers_) {
    found.push_back(std::static_pointer_cast<PatchEncoderLayerImpl>(module)->tensors());
  }
  return found;
}

torch::Tensor PatchEncoderImpl::recomputed(const std::shared_ptr<PatchEncoderLayerImpl>& layer,
                                           const torch::Tensor& x, ScoreHistory& history) const {
  using Tensors = std::vector<at::Tensor>;
  const auto block = [layer](const Tensors& in) -> Tensors {
    ScoreHistory passed{.scores = in[1], .queries = in[2], .keys = in[3]};
    const torch::Tensor output = layer->forward(in[0], passed);
    return {output, passed.scores, passed.queries, passed.keys};
  };
  const Tensors outputs =
      gradient_checkpoint(block, {x, history.scores, history.queries, history.keys}, *layer);
  history = {.scores = outputs[1], .queries = outputs[2], .keys = outputs[3]};
  return outputs[0];
}

}  // namespace flash::models
