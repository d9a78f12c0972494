#include <flash_attention/models/gradient_checkpoint.h>
#include <flash_attention/models/informer.h>
#include <torch/torch.h>

#include <cmath>
#include <utility>

#include "checks.h"
#include "layers/common/data_embedding.h"
#include "layers/common/linear.h"
#include "layers/common/norms.h"
#include "layers/common/transformer_layers.h"
#include "layers/informer/distilling.h"
#include "layers/informer/prob_attention.h"
#include "option_visitor.h"

namespace flash::models {
namespace {

using Tensors = std::vector<at::Tensor>;

/// Past steps at the start of the decoder's input, which h zeros follow.
int64_t label_length(const InformerOptions& options) {
  return Checks("Informer")
      .label_length(options.input_size(), options.decoder_input_size_multiplier());
}

void check_options(const InformerOptions& options) {
  Checks("Informer").heads(options.hidden_size(), "n_head", options.n_head());
  const int64_t label = label_length(options);
  TORCH_CHECK_VALUE(
      std::max(options.input_size(), label + options.h()) <= PositionalEmbeddingImpl::kMaxLength,
      "Informer: expected sequences of at most ", PositionalEmbeddingImpl::kMaxLength,
      " steps, got input_size ", options.input_size(), " and a decoder of ", label + options.h());
  activation_named("Informer", options.activation());
}

TransformerLayerOptions layer_options(const InformerOptions& options) {
  return {.hidden_size = options.hidden_size(),
          .heads = options.n_head(),
          .inner_size = options.conv_hidden_size(),
          .activation = activation_named("Informer", options.activation()),
          .dropout = options.dropout()};
}

std::shared_ptr<const AttentionMechanism> mechanism(const InformerOptions& options, bool causal) {
  return std::make_shared<ProbAttention>(options.factor(), causal, options.config());
}

std::shared_ptr<DataEmbeddingImpl> embedding(const InformerOptions& options) {
  return std::make_shared<DataEmbeddingImpl>(
      DataEmbeddingOptions{.hidden_size = options.hidden_size(),
                           .exog_size = static_cast<int64_t>(options.futr_exog_list().size()),
                           .has_position = true,
                           .dropout = options.dropout()});
}

torch::nn::LayerNorm layer_norm(const InformerOptions& options) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.hidden_size()}));
}

}  // namespace

class InformerEncoderImpl : public torch::nn::Cloneable<InformerEncoderImpl> {
 public:
  explicit InformerEncoderImpl(const InformerOptions& options) : options_(options) { reset(); }

  void reset() override {
    layers_ = register_module("attn_layers", torch::nn::ModuleList());
    for (int64_t i = 0; i < options_.encoder_layers(); ++i) {
      layers_->push_back(std::make_shared<EncoderLayerImpl>(layer_options(options_),
                                                            mechanism(options_, /*causal=*/false)));
    }
    distilling_ = torch::nn::ModuleList();
    if (options_.distil()) {
      register_module("conv_layers", distilling_);
      for (int64_t i = 0; i + 1 < options_.encoder_layers(); ++i) {
        distilling_->push_back(std::make_shared<DistillingLayerImpl>(options_.hidden_size()));
      }
    }
    norm_ = register_module("norm", layer_norm(options_));
  }

  /// x [B, L, D] -> [B, S, D]; S = L without distilling
  torch::Tensor forward(torch::Tensor x) {
    for (size_t i = 0; i < layers_->size(); ++i) {
      const auto layer = layers_->ptr<EncoderLayerImpl>(i);
      x = options_.gradient_checkpointing()
              ? gradient_checkpoint([layer](const Tensors& in) { return layer->forward(in[0]); },
                                    {x}, *layer)
              : layer->forward(x);
      if (i < distilling_->size()) x = distilling_->ptr<DistillingLayerImpl>(i)->forward(x);
    }
    return layer_normalized(x, *norm_);
  }

 private:
  InformerOptions options_;
  torch::nn::ModuleList layers_{nullptr}, distilling_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
};

class InformerDecoderImpl : public torch::nn::Cloneable<InformerDecoderImpl> {
 public:
  explicit InformerDecoderImpl(const InformerOptions& options) : options_(options) { reset(); }

  void reset() override {
    layers_ = register_module("layers", torch::nn::ModuleList());
    for (int64_t i = 0; i < options_.decoder_layers(); ++i) {
      layers_->push_back(std::make_shared<DecoderLayerImpl>(layer_options(options_),
                                                            mechanism(options_, /*causal=*/true),
                                                            mechanism(options_, /*causal=*/false)));
    }
    norm_ = register_module("norm", layer_norm(options_));
    projection_ = register_module(
        "projection", torch::nn::Linear(options_.hidden_size(), options_.outputsize_multiplier()));
  }

  /// x [B, T, D], memory [B, S, D] -> [B, h, outputsize_multiplier]
  torch::Tensor forward(torch::Tensor x, const torch::Tensor& memory) {
    for (size_t i = 0; i < layers_->size(); ++i) {
      const auto layer = layers_->ptr<DecoderLayerImpl>(i);
      const int64_t rows = i + 1 < layers_->size() ? x.size(1) : options_.h();
      const Block forward = [layer, rows](const Tensors& in) {
        return layer->forward(in[0], in[1], rows);
      };
      x = options_.gradient_checkpointing() ? gradient_checkpoint(forward, {x, memory}, *layer)
                                            : forward({x, memory});
    }
    return linear(layer_normalized(x, *norm_), projection_->weight, projection_->bias);
  }

 private:
  InformerOptions options_;
  torch::nn::ModuleList layers_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear projection_{nullptr};
};

InformerImpl::InformerImpl(InformerOptions options_) : ForecastModelBase(std::move(options_)) {
  check_options(options);
  reset();
}

void InformerImpl::reset() {
  encoder_embedding_ = register_module("enc_embedding", embedding(options));
  decoder_embedding_ = register_module("dec_embedding", embedding(options));
  encoder_ = register_module("encoder", std::make_shared<InformerEncoderImpl>(options));
  decoder_ = register_module("decoder", std::make_shared<InformerDecoderImpl>(options));
}

torch::Tensor InformerImpl::forward(const WindowsBatch& windows) {
  const Checks check("Informer");
  const int64_t past = options.input_size();
  check.series(windows.insample_y, past, /*series=*/1);
  const torch::Tensor& y = windows.insample_y;
  check.futr_exog(windows.futr_exog, y.size(0), past + options.h(), options.futr_exog_list());
  check.absent("hist_exog", windows.hist_exog);
  check.absent("stat_exog", windows.stat_exog);

  const int64_t label = label_length(options);
  torch::Tensor encoder_exog, decoder_exog;
  if (windows.futr_exog.defined()) {
    encoder_exog = windows.futr_exog.slice(1, 0, past);
    decoder_exog = windows.futr_exog.slice(1, past - label);
  }
  const torch::Tensor decoder_input =
      torch::constant_pad_nd(y.slice(1, past - label), {0, 0, 0, options.h()});
  const torch::Tensor encoder_tokens = encoder_embedding_->forward(y, encoder_exog);
  const torch::Tensor memory = encoder_->forward(encoder_tokens);
  return decoder_->forward(decoder_embedding_->forward(decoder_input, decoder_exog), memory);
}

void visit_options(InformerOptions& options, OptionVisitor& visitor) {
  visitor.visit_size("h", options.h());
  visitor.visit_size("input_size", options.input_size());
  visitor.visit("futr_exog_list", options.futr_exog_list());
  visitor.visit("decoder_input_size_multiplier", options.decoder_input_size_multiplier());
  visitor.visit_size("hidden_size", options.hidden_size());
  visitor.visit_probability("dropout", options.dropout());
  visitor.visit_size("factor", options.factor());
  visitor.visit_size("n_head", options.n_head());
  visitor.visit_size("conv_hidden_size", options.conv_hidden_size());
  visitor.visit("activation", options.activation());
  visitor.visit_size("encoder_layers", options.encoder_layers());
  visitor.visit_size("decoder_layers", options.decoder_layers());
  visitor.visit("distil", options.distil());
}

}  // namespace flash::models
