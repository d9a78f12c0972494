#include "layers/tft/variable_selection.h"

#include <torch/torch.h>

#include <vector>

namespace flash::models {
namespace {

/// `value`, and zeros as the gradient of `input`, which has no influence on it.
class WithoutInfluence : public torch::autograd::Function<WithoutInfluence> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& value, const torch::Tensor& input) {
    context->save_for_backward({input});
    return value;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0], torch::zeros_like(context->get_saved_variables()[0])};
  }
};

}  // namespace

ScalarVectors join(const std::vector<ScalarVectors>& groups) {
  std::vector<torch::Tensor> vectors, biases;
  for (const ScalarVectors& group : groups) {
    vectors.push_back(group.vectors);
    biases.push_back(group.biases);
  }
  return {.vectors = torch::cat(vectors), .biases = torch::cat(biases)};
}

VariableSelectionImpl::VariableSelectionImpl(int64_t variables, int64_t hidden_size, double dropout,
                                             GatedActivation activation)
    : variables_(variables), hidden_size_(hidden_size), dropout_(dropout), activation_(activation) {
  reset();
}

void VariableSelectionImpl::reset() {
  joint_ = register_module("joint_grn", GatedResidualNetwork(GatedResidualNetworkOptions{
                                            .input_size = variables_ * hidden_size_,
                                            .hidden_size = hidden_size_,
                                            .output_size = variables_,
                                            .context = true,
                                            .activation = activation_}));
  networks_ = register_module("var_grns", torch::nn::ModuleList());
  for (int64_t i = 0; i < variables_; ++i) {
    networks_->push_back(
        GatedResidualNetwork(GatedResidualNetworkOptions{.input_size = hidden_size_,
                                                         .hidden_size = hidden_size_,
                                                         .dropout = dropout_,
                                                         .activation = activation_}));
  }
}

torch::Tensor VariableSelectionImpl::selection(const torch::Tensor& x,
                                               const ScalarVectors& embedding,
                                               const torch::Tensor& context) {
  if (variables_ > 1) {
    return joint_->forward_scalars(x, embedding.vectors, embedding.biases, context).softmax(-1);
  }
  // The softmax of a single element is 1. As in neuralforecast, everything that it depends on gets
  // gradients of zero.
  torch::Tensor ones = torch::ones_like(x);
  for (const torch::Tensor& parameter : joint_->trained_parameters(context.defined())) {
    ones = WithoutInfluence::apply(ones, parameter);
  }
  return context.defined() ? WithoutInfluence::apply(ones, context) : ones;
}

torch::Tensor VariableSelectionImpl::forward(const torch::Tensor& x, const ScalarVectors& embedding,
                                             const torch::Tensor& context) {
  const auto stacked = [this](const auto& parameter) {
    std::vector<torch::Tensor> parts;
    for (const auto& network : *networks_) {
      parts.push_back(parameter(*network->as<GatedResidualNetworkImpl>()));
    }
    return torch::stack(parts);
  };
  const auto of_weights = [&](auto member) {
    return stacked([&](const GatedResidualNetworkImpl& n) { return n.weights().*member; });
  };
  const auto of_gate = [&](auto member) {
    return stacked([&](const GatedResidualNetworkImpl& n) { return n.weights().gate.*member; });
  };
  const auto weight = stacked([](const GatedResidualNetworkImpl& n) { return n.first()->weight; });
  const auto bias = stacked([](const GatedResidualNetworkImpl& n) { return n.first()->bias; });
  const auto through_first = [&](const torch::Tensor& rows) {
    return weight.matmul(rows.unsqueeze(-1)).squeeze(-1);
  };
  return selected_variables(x, selection(x, embedding, context),
                            {.factor = embedding.vectors,
                             .shift = embedding.biases,
                             .first_factor = through_first(embedding.vectors),
                             .first_shift = through_first(embedding.biases) + bias},
                            {.weight = of_weights(&ResidualWeights::weight),
                             .bias = of_weights(&ResidualWeights::bias),
                             .gate = {.weight = of_gate(&GateWeights::weight),
                                      .bias = of_gate(&GateWeights::bias),
                                      .norm_weight = of_gate(&GateWeights::norm_weight),
                                      .norm_bias = of_gate(&GateWeights::norm_bias)}},
                            activation_, is_training() ? dropout_ : 0.0);
}

}  // namespace flash::models
