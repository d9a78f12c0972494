// Linear layers against ATen's.

#include "layers/common/linear.h"

#include <flash_attention/layer_kernels.h>
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

TEST(Linear, OfFewRowsEqualsTorch) {
  torch::manual_seed(5);
  const torch::NoGradGuard no_grad;
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const double allowed = dtype == at::kFloat ? kOperatorFloat32 : kOperatorFloat64;
    // With columns of a wider matrix as weight, and with contiguous columns, which are copied.
    const torch::Tensor weights[] = {
        torch::randn({37, 90}, dtype) / 9.5,
        torch::randn({37, 100}, dtype).narrow(1, 3, 90) / 9.5,
        (torch::randn({90, 37}, dtype) / 9.5).t(),
    };
    for (const torch::Tensor& weight : weights) {
      for (const torch::Tensor& x :
           {torch::randn({1, 90}, dtype), torch::randn({2, 7, 90}, dtype),
            torch::randn({90, 5}, dtype).t(), torch::randn({0, 90}, dtype)}) {
        for (const torch::Tensor& bias : {torch::randn({37}, dtype), torch::Tensor()}) {
          const torch::Tensor expected = torch::linear(x, weight, bias);
          EXPECT_LT(max_difference(models::linear(x, weight, bias), expected), allowed)
              << x.sizes();
        }
      }
    }
    EXPECT_ANY_THROW(models::linear(torch::randn({4, 80}, dtype), weights[0]));
    EXPECT_ANY_THROW(
        models::linear(torch::randn({4, 90}, dtype), weights[0], torch::randn({36}, dtype)));
  }
}

TEST(Linear, OfFewRowsHasTheSameBitsOnAnyNumberOfThreadsAndForAnyOtherRows) {
  if (!kernels::have_vectors()) GTEST_SKIP() << "the products are ATen's";
  torch::manual_seed(6);
  const torch::NoGradGuard no_grad;
  // Of enough multiplications for several tasks.
  const torch::Tensor x = torch::randn({8, 600}), weight = torch::randn({700, 600}),
                      bias = torch::randn({700}), all = models::linear(x, weight, bias);
  for (const int64_t i : {0, 5, 7}) {
    EXPECT_TRUE(torch::equal(models::linear(x.narrow(0, i, 1), weight, bias), all.narrow(0, i, 1)))
        << i;
  }
  const int threads = at::get_num_threads();
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    EXPECT_TRUE(torch::equal(models::linear(x, weight, bias), all)) << count << " threads";
  }
  at::set_num_threads(threads);
}

TEST(Linear, SumsRowsInOneOrderOnAnyNumberOfThreads) {
  torch::manual_seed(5);
  const int threads = at::get_num_threads();
  for (const int64_t rows : {1, 127, 128, 65537, 300001}) {
    const torch::Tensor x = torch::randn({rows, 1});
    const torch::Tensor expected = x.to(at::kDouble).sum(0);
    std::vector<torch::Tensor> sums;
    for (const int count : {1, 2, 3}) {
      at::set_num_threads(count);
      sums.push_back(models::sum_of_rows(x));
      EXPECT_TRUE(torch::equal(sums.back(), sums.front())) << rows << " rows, " << count;
    }
    // The rounding of a sum of this many numbers of order 1.
    EXPECT_LT(max_difference(sums[0], expected), 1e-5 * static_cast<double>(rows) + 1e-6);
  }
  at::set_num_threads(threads);
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
