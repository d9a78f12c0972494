// project_heads and merge_heads against ATen.

#include "layers/patchtst/projected_heads.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::ScoreHistory;
using torch::Tensor;

constexpr int64_t kHeads = 3;

Tensor random_leaf(at::IntArrayRef sizes) {
  return torch::randn(sizes, at::dtype(at::kDouble)).requires_grad_();
}

/// [B, T, parts H d] -> [B, H, T, d] each.
std::vector<Tensor> split_heads(const Tensor& packed, int64_t parts) {
  return packed.unflatten(-1, {parts, kHeads, -1}).permute({2, 0, 3, 1, 4}).unbind();
}

/// With the layers of queries, keys and values in one weight.
Tensor project(const Tensor& x, const Tensor& weight, const Tensor& bias, ScoreHistory& history) {
  const auto w = weight.chunk(3), b = bias.chunk(3);
  return models::project_heads(x, {{{w[0], b[0]}, {w[1], b[1]}, {w[2], b[2]}}}, kHeads, history);
}

/// The results of two consecutive layers, and their gradients of first or second order.
std::vector<Tensor> two_layers(bool ours, int64_t width, int64_t layers, bool twice) {
  torch::manual_seed(1);
  const Tensor x = random_leaf({5, 90, 8}), merge = random_leaf({8, kHeads * width}),
               merge_bias = random_leaf({8});
  const Tensor weights[] = {random_leaf({3 * kHeads * width, 8}),
                            random_leaf({3 * kHeads * width, 8})};
  const Tensor bias = random_leaf({3 * kHeads * width});
  ScoreHistory history;
  history.layers = layers;
  Tensor value, out = torch::zeros({}, at::kDouble);
  for (const Tensor& weight : weights) {
    if (ours) {
      value = project(x, weight, bias, history);
    } else {
      const std::vector<Tensor> parts = split_heads(torch::linear(x, weight, bias), 3);
      const auto appended = [](const Tensor& before, const Tensor& part) {
        return before.defined() ? torch::cat({before, part}, -1) : part;
      };
      history.queries = appended(history.queries, parts[0]);
      history.keys = appended(history.keys, parts[1]);
      value = parts[2];
    }
    out = out + history.queries.square().mul(0.1).mean() + (history.keys.tanh() * 2).mean();
  }
  const Tensor merged = ours ? models::merge_heads(value, merge, merge_bias)
                             : torch::linear(value.transpose(1, 2).flatten(2), merge, merge_bias);
  out = out + merged.sin().mean();
  const std::vector<Tensor> leaves = {x, weights[0], weights[1], bias, merge, merge_bias};
  std::vector<Tensor> gradients = torch::autograd::grad({out}, leaves, {}, true, twice);
  if (twice) {
    Tensor sum = torch::zeros({}, at::kDouble);
    for (const Tensor& gradient : gradients) sum = sum + gradient.square().sum();
    gradients = torch::autograd::grad({sum}, leaves);
  }
  gradients.insert(gradients.end(),
                   {history.queries.detach(), history.keys.detach(), merged.detach()});
  return gradients;
}

TEST(ProjectedHeads, EqualAtenWithGradients) {
  for (const int64_t width : {1, 3, 4}) {
    for (const int64_t layers : {1, 2, 3}) {  // memory for fewer layers than there are, or more
      for (const bool twice : {false, true}) {
        const std::vector<Tensor> expected = two_layers(false, width, layers, twice);
        const std::vector<Tensor> got = two_layers(true, width, layers, twice);
        for (size_t i = 0; i < expected.size(); ++i) {
          EXPECT_LT(max_difference(got[i], expected[i]), kModelFloat64)
              << "width " << width << ", memory for " << layers << ", result " << i;
        }
      }
    }
  }
}

TEST(ProjectedHeads, KeepTheSavedTensorsOfEarlierLayersValid) {
  ScoreHistory history;
  history.layers = 2;
  const Tensor x = random_leaf({2, 5, 8}), weight = random_leaf({3 * kHeads * 4, 8}),
               bias = random_leaf({36});
  project(x, weight, bias, history);
  const Tensor first = history.queries, before = first.detach().clone();
  const Tensor square = first.square();  // saves `first`
  project(x, weight, bias, history);
  EXPECT_EQ(history.queries.data_ptr(), first.data_ptr());
  EXPECT_TRUE(torch::equal(first, before));
  EXPECT_NO_THROW(square.sum().backward());
}

}  // namespace
}  // namespace flash::tests
