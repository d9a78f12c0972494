#include "layers/tft/temporal_encoder.h"

#include <flash_attention/models/gradient_checkpoint.h>
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
  using Tensors = std::vector<torch::Tensor>;
  const auto run = [this](const Block& block, const Tensors& inputs, const Tensors& parameters) {
    return options_.recompute ? gradient_checkpoint(block, inputs, parameters) : block(inputs);
  };
  const auto select = [&](const VariableSelection& selection, const torch::Tensor& x,
                          const ScalarVectors& embedding) {
    const auto block = [network = selection.ptr()](const Tensors& in) {
      return network->forward(in[0].flatten(0, 1), {.vectors = in[1], .biases = in[2]}, in[3])
          .view({in[0].size(0), in[0].size(1), -1});
    };
    return run(block, {x, embedding.vectors, embedding.biases, context.selection},
               selection->parameters());
  };
  const auto recur = [past = past_recurrence_.ptr(), future = future_recurrence_.ptr(),
                      gate = gate_, norm = norm_](const Tensors& in) {
    RecurrentState state = {.hidden = in[2], .cell = in[3]};
    const torch::Tensor past_outputs = past->forward(in[0], state);
    const torch::Tensor outputs = torch::cat({past_outputs, future->forward(in[1], state)});
    return gated_norm(outputs.flatten(0, 1), torch::cat({in[0], in[1]}).flatten(0, 1),
                      gate_weights(gate, norm));
  };
  Tensors parameters;
  for (const torch::nn::Module* module : std::initializer_list<const torch::nn::Module*>{
           past_recurrence_.get(), future_recurrence_.get(), gate_.get(), norm_.get()}) {
    for (const torch::Tensor& parameter : module->parameters()) parameters.push_back(parameter);
  }
  return run(recur,
             {select(past_selection_, past, past_embedding),
              select(future_selection_, future, future_embedding), context.state.hidden,
              context.state.cell},
             parameters);
}

}  // namespace flash::models
