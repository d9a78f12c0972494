// The pieces of Informer's distilling layer against torch's convolution and pooling.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "layers/informer/circular_convolution.h"
#include "layers/informer/time_pooling.h"
#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

namespace F = torch::nn::functional;
using models::circular_convolution;
using models::halve_by_maximum;

TEST(CircularConvolution, EqualsTorchWithGradients) {
  torch::manual_seed(1);
  for (const int64_t steps : {2, 3, 4, 5, 17, 400}) {
    const torch::Tensor x = torch::randn({3, steps, 6}, torch::kDouble).requires_grad_();
    const torch::Tensor weight = torch::randn({5, 6, 3}, torch::kDouble).requires_grad_();
    const torch::Tensor bias = torch::randn({5}, torch::kDouble).requires_grad_();
    const torch::Tensor padded =
        F::pad(x.transpose(1, 2), F::PadFuncOptions({2, 2}).mode(torch::kCircular));
    const torch::Tensor expected = torch::conv1d(padded, weight, bias).transpose(1, 2);
    const torch::Tensor got = circular_convolution(x, weight, bias);
    EXPECT_LT(max_difference(got, expected), kModelFloat64) << steps;
    const torch::Tensor g = torch::randn_like(got);
    const auto theirs = torch::autograd::grad({expected}, {x, weight, bias}, {g});
    const auto ours = torch::autograd::grad({got}, {x, weight, bias}, {g});
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_LT(max_difference(ours[i], theirs[i]), kModelFloat64) << steps << " " << i;
    }
  }
}

torch::Tensor pooled_by_torch(const torch::Tensor& x) {
  return torch::max_pool1d(x.transpose(1, 2), /*kernel_size=*/3, /*stride=*/2, /*padding=*/1)
      .transpose(1, 2);
}

TEST(HalveByMaximum, EqualsTorchWithGradients) {
  torch::manual_seed(1);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const int64_t steps : {1, 2, 3, 4, 9, 10}) {
      // Few distinct values, so that there are ties; the first one wins.
      const torch::Tensor x = torch::randint(3, {2, steps, 21}).to(dtype).requires_grad_();
      const torch::Tensor expected = pooled_by_torch(x), got = halve_by_maximum(x);
      EXPECT_TRUE(torch::equal(got, expected)) << steps;
      const torch::Tensor g = torch::randn_like(got);
      EXPECT_EQ(max_difference(torch::autograd::grad({got}, {x}, {g})[0],
                               torch::autograd::grad({expected}, {x}, {g})[0]),
                0.0)
          << steps;
    }
  }
}

TEST(HalveByMaximum, PropagatesNaN) {
  const torch::Tensor x = torch::zeros({1, 6, 1});
  x[0][3][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(torch::equal(halve_by_maximum(x).isnan(), pooled_by_torch(x).isnan()));
}

}  // namespace
}  // namespace flash::tests
