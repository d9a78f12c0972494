#include "layers/decomposition/decomposition_transformer.h"

#include <torch/torch.h>

#include "layers/common/data_embedding.h"
#include "layers/decomposition/decomposition_layers.h"
#include "layers/decomposition/series_decomposition.h"

namespace flash::models {

void DecompositionTransformer::register_in(
    torch::nn::Module& owner, const DecompositionTransformerOptions& options,
    const std::function<SharedMechanisms()>& make_mechanisms) {
  options_ = options;
  const DataEmbeddingOptions embedding = {.hidden_size = options.hidden_size,
                                          .exog_size = options.exog_size,
                                          .has_position = false,
                                          .dropout = options.dropout};
  encoder_embedding_ =
      owner.register_module("enc_embedding", std::make_shared<DataEmbeddingImpl>(embedding));
  decoder_embedding_ =
      owner.register_module("dec_embedding", std::make_shared<DataEmbeddingImpl>(embedding));
  mechanisms_ = make_mechanisms();
  encoder_ = owner.register_module(
      "encoder", std::make_shared<DecompositionEncoderImpl>(options, mechanisms_));
  decoder_ = owner.register_module(
      "decoder", std::make_shared<DecompositionDecoderImpl>(options, mechanisms_));
}

at::Tensor DecompositionTransformer::forward(const at::Tensor& series,
                                             const at::Tensor& futr_exog) const {
  at::Tensor encoder_exog, decoder_exog;
  if (options_.exog_size > 0) {
    encoder_exog = futr_exog.slice(1, 0, options_.input_size);
    decoder_exog = futr_exog.slice(1, -(options_.label_length + options_.h));
  }
  const at::Tensor memory = encoder_->forward(encoder_embedding_->forward(series, encoder_exog));
  // The decoder's seasonal part starts with the end of the window's, followed by zeros. Its trend
  // starts with the window's, followed by the window's mean; only the latter is in the forecast.
  const at::Tensor start =
      at::constant_pad_nd(seasonal_part(series, options_.window).slice(1, -options_.label_length),
                          {0, 0, 0, options_.h});
  return series.mean(1, /*keepdim=*/true) +
         decoder_->forward(decoder_embedding_->forward(start, decoder_exog), memory);
}

std::map<std::string, std::string> DecompositionTransformer::tied_parameters() const {
  std::map<std::string, std::string> tied;
  const auto add = [&tied](const AttentionMechanism& mechanism, const std::string& stack,
                           const std::string& attention, int64_t layers) {
    const auto name = [&](int64_t layer, const std::string& parameter) {
      return stack + std::to_string(layer) + attention + ".inner_correlation." + parameter;
    };
    for (const auto& parameter : mechanism.named_parameters()) {
      for (int64_t i = 1; i < layers; ++i) {
        tied.emplace(name(i, parameter.key()), name(0, parameter.key()));
      }
    }
  };
  add(*mechanisms_.encoder_self, "encoder.attn_layers.", ".attention", options_.encoder_layers);
  add(*mechanisms_.decoder_self, "decoder.layers.", ".self_attention", options_.decoder_layers);
  add(*mechanisms_.decoder_cross, "decoder.layers.", ".cross_attention", options_.decoder_layers);
  return tied;
}

void copy_parameters(const torch::nn::Module& original, torch::nn::Module& copy,
                     const std::optional<torch::Device>& device) {
  const torch::NoGradGuard no_grad;
  auto targets = copy.named_parameters();
  for (const auto& parameter : original.named_parameters()) {
    at::Tensor& target = targets[parameter.key()];
    target.set_data(device && parameter->device() != *device ? parameter->to(*device)
                                                             : parameter->clone());
    target.set_requires_grad(parameter->requires_grad());
  }
  copy.train(original.is_training());
}

}  // namespace flash::models
