#include "layers/decomposition/decomposition_layers.h"

#include <flash_attention/models/gradient_checkpoint.h>
#include <torch/torch.h>

#include "layers/common/linear.h"
#include "layers/common/norms.h"
#include "layers/common/skinny_linear.h"
#include "layers/decomposition/series_decomposition.h"

namespace flash::models {
namespace {

using Tensors = std::vector<torch::Tensor>;

FeedForwardOptions feed_forward_options(const DecompositionTransformerOptions& options) {
  return {.hidden_size = options.hidden_size,
          .inner_size = options.inner_size,
          .activation = options.activation,
          .dropout = options.dropout,
          .bias = false};
}

/// x [B, T, D] minus its mean over time, in place, because the norm's result is not needed again.
class Centred : public torch::autograd::Function<Centred> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, torch::Tensor x) {
    context->mark_dirty({x});
    return x.sub_(x.mean(1, /*keepdim=*/true));
  }

  static Tensors backward(torch::autograd::AutogradContext*, const Tensors& gradients) {
    return {gradients[0] - gradients[0].mean(1, /*keepdim=*/true)};
  }
};

void append(Tensors& all, Tensors more) { all.insert(all.end(), more.begin(), more.end()); }

}  // namespace

MechanismLayerImpl::MechanismLayerImpl(const DecompositionTransformerOptions& options,
                                       std::shared_ptr<AttentionMechanism> mechanism, bool owner)
    : mechanism_(std::move(mechanism)), used_(mechanism_) {
  if (owner) register_module("inner_correlation", mechanism_);
  projections_.register_in(*this, options.hidden_size, options.heads);
  if (options.attention != AttentionChoice::kNative) {
    used_ = std::make_shared<FullAttention>(
        /*dropout=*/0.0,
        ModelConfig{.use_flash_attention = options.attention == AttentionChoice::kFlash,
                    .flash_block_size = options.config.flash_block_size});
  }
}

torch::Tensor MechanismLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& memory) {
  return used_->forward(projections_, x, memory, is_training());
}

DecompositionEncoderLayerImpl::DecompositionEncoderLayerImpl(
    const DecompositionTransformerOptions& options, const SharedMechanisms& mechanisms, bool owner)
    : dropout_(options.dropout), window_(options.window) {
  attention_ = register_module(
      "attention", std::make_shared<MechanismLayerImpl>(options, mechanisms.encoder_self, owner));
  feed_forward_.register_in(*this, feed_forward_options(options));
}

torch::Tensor DecompositionEncoderLayerImpl::forward(const torch::Tensor& x) {
  const bool training = is_training();
  const torch::Tensor seasonal =
      seasonal_part_of_sum(attention_->forward(x, x), x, dropout_, training, window_);
  return seasonal_part_of_sum(feed_forward_.forward(seasonal, training), seasonal, dropout_,
                              training, window_);
}

Tensors DecompositionEncoderLayerImpl::used_parameters() const {
  Tensors used = parameters();
  append(used, attention_->mechanism_parameters());
  return used;
}

DecompositionDecoderLayerImpl::DecompositionDecoderLayerImpl(
    const DecompositionTransformerOptions& options, const SharedMechanisms& mechanisms, bool owner)
    : dropout_(options.dropout), window_(options.window), h_(options.h) {
  self_attention_ = register_module("self_attention", std::make_shared<MechanismLayerImpl>(
                                                          options, mechanisms.decoder_self, owner));
  cross_attention_ = register_module(
      "cross_attention",
      std::make_shared<MechanismLayerImpl>(options, mechanisms.decoder_cross, owner));
  feed_forward_.register_in(*this, feed_forward_options(options));
  projection_ = register_module(
      "projection",
      torch::nn::Conv1d(
          torch::nn::Conv1dOptions(options.hidden_size, options.outputs, 3).bias(false)));
}

DecoderState DecompositionDecoderLayerImpl::forward(const torch::Tensor& x,
                                                    const torch::Tensor& memory) {
  const bool training = is_training();
  SeriesParts parts =
      decompose_series_sum(self_attention_->forward(x, x), x, dropout_, training, window_);
  const auto add = [&](const torch::Tensor& branch) {
    return decompose_series_sum(branch, parts.seasonal, dropout_, training, window_, parts.trend);
  };
  parts = add(cross_attention_->forward(parts.seasonal, memory));
  parts = add(feed_forward_.forward(parts.seasonal, training));
  return {parts.seasonal, project_trend(parts.trend)};
}

torch::Tensor DecompositionDecoderLayerImpl::project_trend(const torch::Tensor& trend) const {
  // The convolution as one product per neighbour. Shifting in time comes afterwards, when there are
  // few columns left.
  const torch::Tensor neighbours =
      skinny_linear(trend, projection_->weight.permute({2, 0, 1}).flatten(0, 1));
  const Tensors terms = neighbours.chunk(3, 2);
  return (terms[0].roll(1, 1) + terms[1] + terms[2].roll(-1, 1)).slice(1, -h_);
}

Tensors DecompositionDecoderLayerImpl::used_parameters() const {
  Tensors used = parameters();
  append(used, self_attention_->mechanism_parameters());
  append(used, cross_attention_->mechanism_parameters());
  return used;
}

SeasonalNormImpl::SeasonalNormImpl(int64_t hidden_size) {
  norm_ = register_module("layernorm",
                          torch::nn::LayerNorm(torch::nn::LayerNormOptions({hidden_size})));
}

torch::Tensor SeasonalNormImpl::forward(const torch::Tensor& x) {
  return Centred::apply(layer_normalized(x, *norm_));
}

torch::Tensor SeasonalNormImpl::project_last(const torch::Tensor& x, int64_t rows,
                                             torch::nn::Linear& linear) {
  // The mean commutes with the product, and is cheaper after it.
  const torch::Tensor projected = skinny_linear(layer_normalized(x, *norm_), linear->weight);
  return with_bias(projected.slice(1, -rows) - projected.mean(1, /*keepdim=*/true), linear->bias);
}

DecompositionEncoderImpl::DecompositionEncoderImpl(const DecompositionTransformerOptions& options,
                                                   const SharedMechanisms& mechanisms)
    : recompute_(options.config.gradient_checkpointing) {
  torch::nn::ModuleList list;
  for (int64_t i = 0; i < options.encoder_layers; ++i) {
    layers_.push_back(
        std::make_shared<DecompositionEncoderLayerImpl>(options, mechanisms, /*owner=*/i == 0));
    list->push_back(layers_.back());
  }
  register_module("attn_layers", list);
  norm_ = register_module("norm", std::make_shared<SeasonalNormImpl>(options.hidden_size));
}

torch::Tensor DecompositionEncoderImpl::forward(torch::Tensor x) {
  for (const auto& layer : layers_) {
    x = recompute_
            ? gradient_checkpoint([layer](const Tensors& in) { return layer->forward(in[0]); }, {x},
                                  layer->used_parameters())
            : layer->forward(x);
  }
  return norm_->forward(x);
}

DecompositionDecoderImpl::DecompositionDecoderImpl(const DecompositionTransformerOptions& options,
                                                   const SharedMechanisms& mechanisms)
    : recompute_(options.config.gradient_checkpointing), h_(options.h) {
  torch::nn::ModuleList list;
  for (int64_t i = 0; i < options.decoder_layers; ++i) {
    layers_.push_back(
        std::make_shared<DecompositionDecoderLayerImpl>(options, mechanisms, /*owner=*/i == 0));
    list->push_back(layers_.back());
  }
  register_module("layers", list);
  norm_ = register_module("norm", std::make_shared<SeasonalNormImpl>(options.hidden_size));
  projection_ =
      register_module("projection", torch::nn::Linear(options.hidden_size, options.outputs));
}

torch::Tensor DecompositionDecoderImpl::forward(torch::Tensor x, const torch::Tensor& memory) {
  torch::Tensor trend;
  for (const auto& layer : layers_) {
    DecoderState state;
    if (recompute_) {
      const Tensors results = gradient_checkpoint(
          [layer](const Tensors& in) -> Tensors {
            const DecoderState inner = layer->forward(in[0], in[1]);
            return {inner.seasonal, inner.trend};
          },
          {x, memory}, layer->used_parameters());
      state = {results[0], results[1]};
    } else {
      state = layer->forward(x, memory);
    }
    x = state.seasonal;
    trend = trend.defined() ? trend + state.trend : state.trend;
  }
  return trend + norm_->project_last(x, h_, projection_);
}

}  // namespace flash::models
