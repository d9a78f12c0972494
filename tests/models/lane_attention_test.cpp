// Attention of many short sequences against standard attention.

#include "layers/patchtst/lane_attention.h"

#include <flash_attention/ops.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using torch::Tensor;

constexpr double kScale = 0.7;

Tensor leaf(at::IntArrayRef sizes) {
  return torch::randn(sizes, at::dtype(at::kDouble)).requires_grad_();
}

/// The result, and the gradients of first or second order.
template <class Call>
std::vector<Tensor> results(const std::vector<Tensor>& leaves, bool twice, const Call& call) {
  const Tensor out = call(leaves[0], leaves[1], leaves[2]);
  std::vector<Tensor> found = torch::autograd::grad({out.sin().sum()}, leaves, {}, true, twice);
  if (twice) {
    Tensor sum = torch::zeros({}, at::kDouble);
    for (const Tensor& gradient : found) sum = sum + gradient.square().sum();
    found = torch::autograd::grad({sum}, leaves);
  }
  found.push_back(out.detach());
  return found;
}

TEST(LaneAttention, EqualsStandardAttentionWithGradients) {
  torch::manual_seed(1);
  const std::vector<Tensor> contiguous = {leaf({3, 5, 7, 4}), leaf({3, 5, 6, 4}),
                                          leaf({3, 5, 6, 3})};
  // Columns of a wider matrix, as PatchTST's layers append them; heads beside each other.
  const std::vector<Tensor> views = {
      torch::randn({3, 5, 7, 9}, at::kDouble).narrow(3, 2, 4).detach().requires_grad_(),
      torch::randn({3, 6, 5, 4}, at::kDouble).transpose(1, 2).detach().requires_grad_(),
      torch::randn({3, 5, 6, 6}, at::kDouble).slice(3, 0, 6, 2).detach().requires_grad_()};
  for (const std::vector<Tensor>& leaves : {contiguous, views}) {
    EXPECT_TRUE(models::fits_lanes(leaves[0], leaves[1], leaves[2]));
    for (const bool twice : {false, true}) {
      const auto found =
          results(leaves, twice, [](const Tensor& q, const Tensor& k, const Tensor& v) {
            return models::lane_attention(q, k, v, kScale);
          });
      const auto expected =
          results(leaves, twice, [](const Tensor& q, const Tensor& k, const Tensor& v) {
            return standard_attention(q, k, v, AttentionOptions().scale(kScale));
          });
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_LT(max_difference(found[i], expected[i]), kModelFloat64)
            << "result " << i << (twice ? " of second order" : "");
      }
    }
  }
}

TEST(LaneAttention, IsForShortSequencesOfFloats) {
  const auto of = [](int64_t length, at::ScalarType dtype) {
    const Tensor t = torch::zeros({2, 2, length, 4}, dtype);
    return models::fits_lanes(t, t, t);
  };
  EXPECT_TRUE(of(64, at::kFloat));
  EXPECT_TRUE(of(1, at::kDouble));
  EXPECT_FALSE(of(65, at::kFloat));
  EXPECT_FALSE(of(0, at::kFloat));
  EXPECT_FALSE(of(8, at::kBFloat16));
}

}  // namespace
}  // namespace flash::tests
