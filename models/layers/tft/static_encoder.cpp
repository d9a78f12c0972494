#include "layers/tft/static_encoder.h"

#include <torch/torch.h>

namespace flash::models {

StaticEncoderImpl::StaticEncoderImpl(StaticEncoderOptions options)
    : options_(options), states_(options.one_initial_state ? 1 : options.rnn_layers) {
  reset();
}

void StaticEncoderImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  selection_ = register_module(
      "vsn", VariableSelection(options_.variables, hidden, options_.dropout, options_.activation));
  contexts_ = register_module("context_grns", torch::nn::ModuleList());
  const int64_t count = 2 + (options_.cell == RecurrentCell::kLstm ? 2 : 1) * states_;
  for (int64_t i = 0; i < count; ++i) {
    contexts_->push_back(GatedResidualNetwork(GatedResidualNetworkOptions{
        .input_size = hidden, .hidden_size = hidden, .dropout = options_.dropout}));
  }
}

StaticContext StaticEncoderImpl::forward(const torch::Tensor& x, const ScalarVectors& embedding) {
  const torch::Tensor selected = selection_(x, embedding);
  const auto context = [&](int64_t i) {
    return contexts_->ptr<GatedResidualNetworkImpl>(i)->forward(selected);
  };
  const auto states = [&](int64_t first) {
    std::vector<torch::Tensor> parts;
    for (int64_t i = 0; i < states_; ++i) parts.push_back(context(first + i));
    return torch::stack(parts).expand({options_.rnn_layers, -1, -1}).contiguous();
  };
  StaticContext result;
  result.selection = context(0);
  result.enrichment = context(1);
  result.state.hidden = states(2);
  if (options_.cell == RecurrentCell::kLstm) result.state.cell = states(2 + states_);
  return result;
}

}  // namespace flash::models
