// Derivatives of the operator from C++.

#include <flash_attention/ops.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::HasSubstr;
using tests::Inputs;
using tests::largest_difference;
using tests::tolerance;

std::vector<Tensor> gradients(const Tensor& out, const std::vector<Tensor>& inputs,
                              const Tensor& grad) {
  return torch::autograd::grad({out}, inputs, {grad});
}

class AutogradOf : public testing::TestWithParam<at::ScalarType> {};

INSTANTIATE_TEST_SUITE_P(Dtype, AutogradOf, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return std::string(toString(info.param)); });

TEST_P(AutogradOf, GradientsEqualThoseOfStandardAttention) {
  const Inputs x = Inputs(GetParam()).requires_grad();
  const Tensor bias = at::randn({4, 1, 33}, GetParam()).requires_grad_();
  const Tensor grad = at::randn({2, 4, 19, 12}, GetParam());
  const Tensor slopes = at::rand({2, 4}, GetParam()).requires_grad_();
  const Tensor sinks = at::randn({4}, GetParam()).requires_grad_();
  const std::vector<Tensor> inputs = {x.query, x.key, x.value, bias, slopes, sinks};
  for (const double dropout : {0.0, 0.3}) {
    const auto options = AttentionOptions()
                             .bias(bias)
                             .causal(true)
                             .window({.left = 12})
                             .alibi_slopes(slopes)
                             .softcap(2.0)
                             .sinks(sinks)
                             .dropout(dropout);
    torch::manual_seed(2);
    const auto flash = gradients(attention(x.query, x.key, x.value, options), inputs, grad);
    torch::manual_seed(2);
    const auto standard =
        gradients(standard_attention(x.query, x.key, x.value, options), inputs, grad);
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_EQ(flash[i].sizes(), inputs[i].sizes());
      EXPECT_LE(largest_difference(flash[i], standard[i]), 10 * tolerance(GetParam())) << i;
    }
  }
}

TEST_P(AutogradOf, LseIsDifferentiable) {
  const Inputs x = Inputs(GetParam()).requires_grad();
  const auto [out, lse] = attention_with_lse(x.query, x.key, x.value);
  const Tensor scores = at::matmul(x.query, x.key.mT()) / std::sqrt(8.0);
  const Tensor grad = at::randn(lse.sizes(), GetParam());
  const auto flash = gradients(lse, {x.query, x.key}, grad);
  const auto expected = gradients(at::logsumexp(scores, -1), {x.query, x.key}, grad);
  for (size_t i = 0; i < flash.size(); ++i) {
    EXPECT_LE(largest_difference(flash[i], expected[i]), 10 * tolerance(GetParam())) << i;
  }
}

TEST_P(AutogradOf, GradientOfOneInputAlone) {
  const Inputs all = Inputs(GetParam()).requires_grad();
  const Tensor grad = at::randn({2, 4, 19, 12}, GetParam());
  const auto expected =
      gradients(attention(all.query, all.key, all.value), {all.query, all.key, all.value}, grad);
  for (const size_t wanted : {0, 1, 2}) {
    const Inputs x(GetParam());
    const std::vector<Tensor> inputs = {x.query, x.key, x.value};
    inputs[wanted].requires_grad_();
    const auto grads = gradients(attention(x.query, x.key, x.value), {inputs[wanted]}, grad);
    EXPECT_LE(largest_difference(grads[0], expected[wanted]), tolerance(GetParam())) << wanted;
  }
}

TEST(Autograd, BackwardFillsGrad) {
  const Inputs x = Inputs().requires_grad();
  attention(x.query, x.key, x.value).sum().backward();
  for (const Tensor& t : {x.query, x.key, x.value}) EXPECT_TRUE(t.grad().defined());
  // The weights of a row sum to 1, so every query adds 1 to the gradient of a column sum of V.
  EXPECT_NEAR(x.value.grad().sum().item<double>(), 2 * 4 * 19 * 12, 1e-9);
}

TEST(Autograd, NothingIsRecordedWithoutGradMode) {
  const Inputs x = Inputs().requires_grad();
  {
    const torch::NoGradGuard no_grad;
    EXPECT_FALSE(attention(x.query, x.key, x.value).requires_grad());
  }
  {
    const c10::InferenceMode inference;
    const Inputs y;
    const Tensor out = attention(y.query, y.key, y.value);
    EXPECT_TRUE(out.is_inference());
    EXPECT_FALSE(out.requires_grad());
  }
  EXPECT_TRUE(attention(x.query, x.key, x.value).requires_grad());
}

TEST(Autograd, InputsModifiedInPlaceAreRefused) {
  const Inputs x = Inputs().requires_grad();
  const Tensor out = attention(x.query, x.key, x.value);
  {
    const torch::NoGradGuard no_grad;
    x.key.add_(1);
  }
  EXPECT_THAT(tests::message_of<c10::Error>([&] { out.sum().backward(); }),
              HasSubstr("modified by an inplace operation"));
}

TEST(Autograd, SecondDerivativesEqualThoseOfStandardAttention) {
  const Inputs x = Inputs(at::kDouble).requires_grad();
  const auto second = [&](const Tensor& out) {
    const auto first = torch::autograd::grad({out.square().sum()}, {x.query, x.value}, {},
                                             /*retain_graph=*/true, /*create_graph=*/true);
    return torch::autograd::grad({first[0].square().sum() + first[1].sum()},
                                 {x.query, x.key, x.value});
  };
  const auto found = second(attention(x.query, x.key, x.value));
  const auto expected = second(standard_attention(x.query, x.key, x.value));
  for (size_t i = 0; i < found.size(); ++i) {
    // Sums of squares of gradients, of magnitudes up to some tens.
    EXPECT_LE(largest_difference(found[i], expected[i]), 100 * tolerance(at::kDouble)) << i;
  }
}

TEST(Autograd, ThirdDerivativesAreNotImplemented) {
  const Inputs x = Inputs().requires_grad();
  const Tensor out = attention(x.query, x.key, x.value);
  const auto first = torch::autograd::grad({out.square().sum()}, {x.query}, {},
                                           /*retain_graph=*/true, /*create_graph=*/true);
  const auto second = torch::autograd::grad({first[0].square().sum()}, {x.key}, {},
                                            /*retain_graph=*/true, /*create_graph=*/true);
  const std::string message = tests::message_of<c10::NotImplementedError>(
      [&] { torch::autograd::grad({second[0].sum()}, {x.query}); });
  EXPECT_THAT(message, HasSubstr("flash::attention: expected"));
  EXPECT_THAT(message, HasSubstr("standard_attention"));
}

TEST(Autograd, StandardAttentionHasSecondDerivatives) {
  const Inputs x = Inputs().requires_grad();
  const Tensor out = standard_attention(x.query, x.key, x.value);
  const auto first = torch::autograd::grad({out.square().sum()}, {x.query}, {},
                                           /*retain_graph=*/true, /*create_graph=*/true);
  const auto second = torch::autograd::grad({first[0].square().sum()}, {x.key});
  EXPECT_GT(second[0].abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace flash
