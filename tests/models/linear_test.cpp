// Linear layers against ATen's.

#include "layers/common/linear.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

/// A large layer, of 300 * 160 * 200 multiplications.
struct Problem {
  torch::Tensor x = torch::randn({3, 100, 160});
  torch::Tensor weight = torch::randn({200, 160}) / 12.6;  // products of order 1
  torch::Tensor bias = torch::randn({200});
};

TEST(Linear, EqualsTorchWithGradients) {
  torch::manual_seed(1);
  for (const bool has_bias : {false, true}) {
    for (const bool transposed : {false, true}) {
      Problem p;
      if (transposed) p.x = p.x.transpose(0, 1).contiguous().transpose(0, 1);
      if (!has_bias) p.bias = torch::Tensor();
      const torch::Tensor g = torch::randn({3, 100, 200});
      std::vector<torch::Tensor> results[2];
      for (const bool ours : {false, true}) {
        const torch::Tensor x = p.x.detach().requires_grad_();
        const torch::Tensor weight = p.weight.detach().clone().requires_grad_();
        const torch::Tensor bias =
            has_bias ? p.bias.detach().clone().requires_grad_() : torch::Tensor();
        const torch::Tensor out =
            ours ? models::linear(x, weight, bias) : torch::linear(x, weight, bias);
        (out * g).sum().backward();
        results[ours] = {out.detach(), x.grad(), weight.grad()};
        x.mutable_grad() = torch::Tensor();
        if (has_bias) results[ours].push_back(bias.grad());
      }
      for (size_t i = 0; i < results[0].size(); ++i) {
        // Sums of up to 300 products of order 1, in another order.
        EXPECT_LT(max_difference(results[0][i], results[1][i]), 10 * kOperatorFloat32) << i;
      }
    }
  }
}

TEST(Linear, HasASecondDerivative) {
  torch::manual_seed(3);
  const Problem p;
  std::vector<torch::Tensor> second[2];
  for (const bool ours : {false, true}) {
    const torch::Tensor x = p.x.detach().requires_grad_();
    const torch::Tensor weight = p.weight.detach().clone().requires_grad_();
    const torch::Tensor out =
        ours ? models::linear(x, weight, p.bias) : torch::linear(x, weight, p.bias);
    const auto first = torch::autograd::grad({out.square().mean()}, {x}, {}, true, true);
    second[ours] = torch::autograd::grad({first[0].square().sum()}, {x, weight});
  }
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_LT(max_difference(second[0][i], second[1][i]), kOperatorFloat32) << i;
  }
}

}  // namespace
}  // namespace flash::tests
