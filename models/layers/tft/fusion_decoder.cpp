#include "layers/tft/fusion_decoder.h"

#include <torch/torch.h>

namespace flash::models {

FusionDecoderImpl::FusionDecoderImpl(InterpretableAttentionOptions attention,
                                     GatedActivation activation)
    : options_(attention), activation_(activation) {
  reset();
}

void FusionDecoderImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  const auto network = [&](bool context) {
    return GatedResidualNetwork(GatedResidualNetworkOptions{.input_size = hidden,
                                                            .hidden_size = hidden,
                                                            .context = context,
                                                            .dropout = options_.output_dropout,
                                                            .activation = activation_});
  };
  const auto norm = [&] {
    return torch::nn::LayerNorm(torch::nn::LayerNormOptions({hidden}).eps(kTftNormEpsilon));
  };
  enrichment_ = register_module("enrichment_grn", network(/*context=*/true));
  attention_ = register_module("attention", InterpretableAttention(options_));
  attention_gate_ = register_module("attention_gate", GatedLinearUnit(hidden, hidden));
  attention_norm_ = register_module("attention_ln", norm());
  positionwise_ = register_module("positionwise_grn", network(/*context=*/false));
  decoder_gate_ = register_module("decoder_gate", GatedLinearUnit(hidden, hidden));
  decoder_norm_ = register_module("decoder_ln", norm());
}

torch::Tensor FusionDecoderImpl::forward(const torch::Tensor& features,
                                         const torch::Tensor& enrichment, int64_t batch,
                                         int64_t queries) {
  const auto by_steps = [&](const torch::Tensor& rows) {
    return rows.view({-1, batch, options_.hidden_size});
  };
  const torch::Tensor enriched = enrichment_(features, enrichment);
  const torch::Tensor last = enriched.slice(0, -queries * batch);
  torch::Tensor x = attention_(by_steps(enriched), by_steps(last));
  x = gated_norm(x.flatten(0, 1), last, gate_weights(attention_gate_, attention_norm_));
  x = positionwise_(x);
  return gated_norm(x, features.slice(0, -queries * batch),
                    gate_weights(decoder_gate_, decoder_norm_));
}

}  // namespace flash::models
