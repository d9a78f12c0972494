// blocked_feed_forward against separate layers.

#include "layers/common/blocked_feed_forward.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::LinearWeights;

constexpr double kDropout = 0.3;

torch::Tensor one_after_another(const torch::Tensor& x, const LinearWeights& first,
                                const LinearWeights& second, Activation activation) {
  const auto linear = [](const torch::Tensor& t, const LinearWeights& layer) {
    return layer.bias.defined() ? torch::linear(t, layer.weight, layer.bias)
                                : torch::linear(t, layer.weight);
  };
  return linear(activation_dropout(linear(x, first), activation, kDropout, true), second);
}

TEST(BlockedFeedForward, EqualsTheSeparateLayersWithGradients) {
  for (const int64_t rows : {1, 7, 256, 700}) {  // less than a block, one, and several
    for (const bool has_bias : {false, true}) {
      for (const Activation activation : {Activation::kRelu, Activation::kGelu}) {
        std::vector<torch::Tensor> results[2];
        for (const bool blocked : {false, true}) {
          torch::manual_seed(1);
          const auto leaf = [](at::IntArrayRef sizes) {
            return torch::randn(sizes, at::dtype(at::kDouble)).requires_grad_();
          };
          const torch::Tensor x = leaf({rows, 1, 12});
          const LinearWeights first = {leaf({35, 12}), has_bias ? leaf({35}) : torch::Tensor()};
          const LinearWeights second = {leaf({9, 35}), has_bias ? leaf({9}) : torch::Tensor()};
          const torch::Tensor out =
              blocked ? models::blocked_feed_forward(x, first, second, activation, kDropout)
                      : one_after_another(x, first, second, activation);
          out.square().mean().backward();
          results[blocked] = {out.detach(), x.grad(), first.weight.grad(), second.weight.grad()};
          if (has_bias) results[blocked].push_back(first.bias.grad());
          if (has_bias) results[blocked].push_back(second.bias.grad());
        }
        for (size_t i = 0; i < results[0].size(); ++i) {
          EXPECT_LT(max_difference(results[0][i], results[1][i]), kModelFloat64)
              << rows << " rows, result " << i;
        }
      }
    }
  }
}

TEST(BlockedFeedForward, RejectsASecondDerivative) {
  const torch::Tensor x = torch::randn({4, 3}).requires_grad_();
  const LinearWeights layer = {torch::randn({3, 3}), {}};
  const torch::Tensor out =
      models::blocked_feed_forward(x, layer, layer, Activation::kGelu, kDropout);
  EXPECT_THROW(torch::autograd::grad({out.sum()}, {x}, {}, true, /*create_graph=*/true),
               c10::NotImplementedError);
}

}  // namespace
}  // namespace flash::tests
