#include "layers/temporal_encoder.h"

#include <torch/torch.h>

namespace flash::models {

TemporalEncoderImpl::TemporalEncoderImpl(TemporalEncoderOptions options) : options_(options) {
  reset();
}

void TemporalEncoderImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  const auto selection = [&](int64_t variables) {
    return VariableSelection(variables, hidden, options_.dropout, options_.activation);
  };
  const auto recurrence = [&] { return Recurrent(options_.cell, hidden, options_.rnn_layers); };
  past_selection_ = register_module("history_vsn", selection(options_.past_variables));
  past_recurrence_ = register_module("history_encoder", recurrence());
  future_recurrence_ = register_module("future_encoder", recurrence());
  future_selection_ = register_module("future_vsn", selection(options_.future_variables));
  gate_ = register_module("input_gate", GatedLinearUnit(hidden, hidden));
  norm_ = register_module(
      "input_gate_ln",
      torch::nn::LayerNorm(torch::nn::LayerNormOptions({hidden}).eps(kTftNormEpsilon)));
}

torch::Tensor TemporalEncoderImpl::forward(const torch::Tensor& past, const torch::Tensor& future,
                                           const ScalarVectors& past_embedding,
                                           const ScalarVectors& future_embedding,
                                           const StaticContext& context) {
  const auto select = [&](VariableSelection& selection, const torch::Tensor& x,
                          const ScalarVectors& embedding) {
    return selection(x.flatten(0, 1), embedding, context.selection)
        .view({x.size(0), x.size(1), options_.hidden_size});
  };
  const torch::Tensor past_features = select(past_selection_, past, past_embedding);
  const torch::Tensor future_features = select(future_selection_, future, future_embedding);
  RecurrentState state = context.state;
  const torch::Tensor past_outputs = past_recurrence_(past_features, state);
  const torch::Tensor future_outputs = future_recurrence_(future_features, state);
  return gated_norm(torch::cat({past_outputs, future_outputs}).flatten(0, 1),
                    torch::cat({past_features, future_features}).flatten(0, 1),
                    gate_weights(gate_, norm_));
}

}  // namespace flash::models
