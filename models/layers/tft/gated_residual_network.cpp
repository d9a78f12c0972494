#include "layers/tft/gated_residual_network.h"

#include <torch/torch.h>

namespace flash::models {
namespace {

/// A layer [out, n * D] on the embeddings of n scalars, split by scalar: factors [n, out].
torch::Tensor scalar_factors(const torch::nn::Linear& layer, const torch::Tensor& vectors) {
  const torch::Tensor parts = layer->weight.view({layer->weight.size(0), vectors.size(0), -1});
  return (parts * vectors).sum(-1).t();
}

torch::Tensor scalar_shift(const torch::nn::Linear& layer, const torch::Tensor& biases) {
  return torch::addmv(layer->bias, layer->weight, biases.flatten());
}

}  // namespace

GatedLinearUnitImpl::GatedLinearUnitImpl(int64_t input_size, int64_t output_size)
    : input_size_(input_size), output_size_(output_size) {
  reset();
}

void GatedLinearUnitImpl::reset() {
  linear_ = register_module("lin", torch::nn::Linear(input_size_, 2 * output_size_));
}

GateWeights gate_weights(const GatedLinearUnit& gate, const torch::nn::LayerNorm& norm) {
  return {.weight = gate->linear()->weight,
          .bias = gate->linear()->bias,
          .norm_weight = norm->weight,
          .norm_bias = norm->bias};
}

OptionalLayerNormImpl::OptionalLayerNormImpl(std::optional<int64_t> features)
    : features_(features) {
  reset();
}

void OptionalLayerNormImpl::reset() {
  if (!features_) return;
  norm_ = register_module(
      "ln", torch::nn::LayerNorm(torch::nn::LayerNormOptions({*features_}).eps(kTftNormEpsilon)));
}

GatedResidualNetworkImpl::GatedResidualNetworkImpl(GatedResidualNetworkOptions options)
    : options_(options) {
  reset();
}

void GatedResidualNetworkImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  const int64_t output = options_.output_size.value_or(hidden);
  // As in neuralforecast: an output_size of 1 is not normalised, a hidden_size of 1 is.
  norm_ = register_module(
      "layer_norm",
      OptionalLayerNorm(options_.output_size == 1 ? std::nullopt : std::optional(output)));
  first_ = register_module("lin_a", torch::nn::Linear(options_.input_size, hidden));
  if (options_.context) {
    context_ = register_module(
        "lin_c", torch::nn::Linear(torch::nn::LinearOptions(hidden, hidden).bias(false)));
  }
  second_ = register_module("lin_i", torch::nn::Linear(hidden, hidden));
  gate_ = register_module("glu", GatedLinearUnit(hidden, output));
  if (options_.output_size) {
    projection_ = register_module("out_proj", torch::nn::Linear(options_.input_size, output));
  }
}

torch::Tensor GatedResidualNetworkImpl::shift(const torch::Tensor& bias,
                                              const torch::Tensor& context) {
  return context.defined() ? context_(context) + bias : bias.unsqueeze(0);
}

ResidualWeights GatedResidualNetworkImpl::weights() const {
  return {
      .weight = second_->weight, .bias = second_->bias, .gate = gate_weights(gate_, norm_->norm())};
}

std::vector<torch::Tensor> GatedResidualNetworkImpl::trained_parameters(bool context) const {
  std::vector<torch::Tensor> found;
  for (const torch::Tensor& parameter : parameters()) {
    const bool unused = !context && !context_.is_empty() && parameter.is_same(context_->weight);
    if (!unused) found.push_back(parameter);
  }
  return found;
}

torch::Tensor GatedResidualNetworkImpl::forward(const torch::Tensor& x,
                                                const torch::Tensor& context) {
  return gated_residual(x, first_->weight, shift(first_->bias, context), weights(),
                        options_.activation, is_training() ? options_.dropout : 0.0);
}

torch::Tensor GatedResidualNetworkImpl::forward_scalars(const torch::Tensor& x,
                                                        const torch::Tensor& vectors,
                                                        const torch::Tensor& biases,
                                                        const torch::Tensor& context) {
  const torch::nn::Linear& gate = gate_->linear();
  const torch::Tensor gates =
      scalar_network(x, scalar_factors(first_, vectors),
                     shift(scalar_shift(first_, biases), context), gate->weight.mm(second_->weight),
                     options_.activation) +
      torch::addmv(gate->bias, gate->weight, second_->bias);
  const torch::Tensor skip =
      torch::addmm(scalar_shift(projection_, biases), x, scalar_factors(projection_, vectors));
  return norm_(torch::glu(gates, -1) + skip);
}

}  // namespace flash::models
