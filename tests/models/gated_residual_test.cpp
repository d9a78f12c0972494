// The gated residual networks against the same networks in torch's operators.

#include "layers/tft/gated_residual.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::GatedActivation;
using torch::Tensor;

constexpr int64_t kRows = 300, kWidth = 5;  // more rows than a block
constexpr double kEpsilon = 1e-3;

Tensor activate(const std::string& name, const Tensor& x) {
  if (name == "ReLU") return torch::relu(x);
  if (name == "Softplus") return torch::softplus(x);
  if (name == "Tanh") return torch::tanh(x);
  if (name == "SELU") return torch::selu(x);
  if (name == "LeakyReLU") return torch::leaky_relu(x);
  if (name == "Sigmoid") return torch::sigmoid(x);
  if (name == "GELU") return torch::gelu(x);
  return torch::elu(x);
}

Tensor leaf(at::IntArrayRef sizes) {
  return torch::randn(sizes, at::dtype(at::kDouble)).requires_grad_();
}

/// The weights of n networks, stacked.
models::ResidualWeights stacked_weights(int64_t n) {
  return {.weight = leaf({n, kWidth, kWidth}),
          .bias = leaf({n, kWidth}),
          .gate = {.weight = leaf({n, 2 * kWidth, kWidth}),
                   .bias = leaf({n, 2 * kWidth}),
                   .norm_weight = leaf({n, kWidth}),
                   .norm_bias = leaf({n, kWidth})}};
}

models::ResidualWeights network(const models::ResidualWeights& all, int64_t i) {
  const models::GateWeights& gate = all.gate;
  return {all.weight[i],
          all.bias[i],
          {gate.weight[i], gate.bias[i], gate.norm_weight[i], gate.norm_bias[i]}};
}

/// The part of a network after the activation.
Tensor tail(const Tensor& activated, const Tensor& skip, const models::ResidualWeights& weights) {
  const models::GateWeights& gate = weights.gate;
  const Tensor hidden = torch::linear(activated, weights.weight, weights.bias);
  return torch::layer_norm(torch::glu(torch::linear(hidden, gate.weight, gate.bias), -1) + skip,
                           {kWidth}, gate.norm_weight, gate.norm_bias, kEpsilon);
}

/// shift[row % P] for every row.
Tensor repeated(const Tensor& shift) {
  return shift.index_select(0, torch::arange(kRows).remainder(shift.size(0)));
}

/// Compares two results and their gradients.
void expect_equal(const Tensor& found, const Tensor& expected, const std::vector<Tensor>& leaves,
                  const std::string& what) {
  EXPECT_LT(max_difference(found, expected), kModelFloat64) << what;
  const Tensor factors = torch::randn_like(found);
  const auto found_gradients = torch::autograd::grad({(found * factors).sum()}, leaves);
  const auto expected_gradients = torch::autograd::grad({(expected * factors).sum()}, leaves);
  for (size_t i = 0; i < leaves.size(); ++i) {
    EXPECT_LT(max_difference(found_gradients[i], expected_gradients[i]), kModelFloat64)
        << what << ", gradient " << i;
  }
}

class EveryActivation : public testing::TestWithParam<const char*> {
 protected:
  EveryActivation() { torch::manual_seed(7); }
  GatedActivation activation_ = models::gated_activation(GetParam());
};

TEST_P(EveryActivation, InASingleNetwork) {
  const Tensor x = leaf({kRows, kWidth}), first = leaf({kWidth, kWidth}), shift = leaf({3, kWidth});
  const auto weights = network(stacked_weights(1), 0);
  const Tensor activated = activate(GetParam(), x.mm(first.t()) + repeated(shift));
  expect_equal(models::gated_residual(x, first, shift, weights, activation_, /*dropout=*/0.0),
               tail(activated, x, weights),
               {x, first, shift, weights.weight, weights.bias, weights.gate.weight,
                weights.gate.bias, weights.gate.norm_weight, weights.gate.norm_bias},
               GetParam());
}

TEST_P(EveryActivation, InSelectedVariables) {
  const int64_t n = 3;
  const Tensor x = leaf({kRows, n}), selection = leaf({kRows, n});
  const models::ScalarEmbedding embedding = {leaf({n, kWidth}), leaf({n, kWidth}),
                                             leaf({n, kWidth}), leaf({n, kWidth})};
  const models::ResidualWeights weights = stacked_weights(n);
  Tensor expected = torch::zeros({kRows, kWidth}, at::kDouble);
  for (int64_t j = 0; j < n; ++j) {
    const Tensor column = x.slice(1, j, j + 1);
    const Tensor activated =
        activate(GetParam(), column * embedding.first_factor[j] + embedding.first_shift[j]);
    expected = expected + selection.slice(1, j, j + 1) *
                              tail(activated, column * embedding.factor[j] + embedding.shift[j],
                                   network(weights, j));
  }
  expect_equal(
      models::selected_variables(x, selection, embedding, weights, activation_, /*dropout=*/0.0),
      expected,
      {x, selection, embedding.factor, embedding.shift, embedding.first_factor,
       embedding.first_shift, weights.weight, weights.bias, weights.gate.weight, weights.gate.bias,
       weights.gate.norm_weight, weights.gate.norm_bias},
      GetParam());
}

TEST_P(EveryActivation, InAScalarNetwork) {
  const Tensor x = leaf({kRows, 2}), first = leaf({2, kWidth}), shift = leaf({4, kWidth}),
               second = leaf({3, kWidth});
  expect_equal(models::scalar_network(x, first, shift, second, activation_),
               activate(GetParam(), x.mm(first) + repeated(shift)).mm(second.t()),
               {x, first, shift, second}, GetParam());
}

TEST_P(EveryActivation, PropagatesNaN) {
  const Tensor x = leaf({kRows, 2}), first = leaf({2, kWidth}), second = leaf({3, kWidth});
  Tensor shift = torch::zeros({4, kWidth}, at::kDouble);
  shift[1].fill_(std::numeric_limits<double>::quiet_NaN());
  const Tensor found = models::scalar_network(x, first, shift, second, activation_).isnan();
  EXPECT_TRUE(torch::equal(found, repeated(shift).isnan().slice(1, 0, 3))) << GetParam();
}

INSTANTIATE_TEST_SUITE_P(GatedResidual, EveryActivation,
                         testing::Values("ReLU", "Softplus", "Tanh", "SELU", "LeakyReLU", "Sigmoid",
                                         "ELU", "GELU"),
                         [](const auto& call) { return std::string(call.param); });

}  // namespace
}  // namespace flash::tests
