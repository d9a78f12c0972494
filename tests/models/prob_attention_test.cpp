// ProbSparse attention with its projections against the plain formula.

#include "layers/informer/prob_attention.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "layers/informer/sampled_by.h"
#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::AttentionProjections;
using models::ProbAttention;
using models::SampledBy;

struct Shape {
  int64_t batch, heads, length, keys, factor;
  bool causal;
};

class ProbAttentionOf : public testing::TestWithParam<std::tuple<Shape, bool>> {};

constexpr int64_t kHidden = 24;

int64_t count(int64_t factor, int64_t length) {
  return std::min(factor * static_cast<int64_t>(std::ceil(std::log(length))), length);
}

/// The reference: all scores, then a selection of rows.
torch::Tensor written_out(const AttentionProjections& p, const Shape& s, const torch::Tensor& x,
                          const torch::Tensor& memory) {
  const auto project = [&](const torch::nn::LinearImpl& layer, const torch::Tensor& t) {
    return p.split_heads(torch::linear(t, layer.weight, layer.bias)).contiguous();
  };
  const torch::Tensor q = project(p.query_layer(), x);
  const torch::Tensor k = project(p.key_layer(), memory);
  const torch::Tensor v = project(p.value_layer(), memory);
  const torch::Tensor table =
      torch::randint(s.keys, {s.length, count(s.factor, s.keys)}, torch::kLong);
  const torch::Tensor scores = q.matmul(k.transpose(2, 3));
  const torch::Tensor sampled = scores.gather(3, table.expand({s.batch, s.heads, -1, -1}));
  const torch::Tensor measure =
      std::get<0>(sampled.max(-1)) - sampled.sum(-1) / static_cast<double>(s.keys);
  const torch::Tensor chosen = std::get<1>(measure.topk(count(s.factor, s.length), -1));
  const torch::Tensor is_chosen =
      torch::zeros(measure.sizes(), torch::kBool).scatter_(2, chosen, true).unsqueeze(-1);
  torch::Tensor scaled = scores / std::sqrt(static_cast<double>(p.head_dim()));
  torch::Tensor others = v.mean(2, true).expand_as(q);
  if (s.causal) {
    const torch::Tensor later = torch::ones({s.length, s.keys}, torch::kBool).triu(1);
    scaled = scaled.masked_fill(later, -std::numeric_limits<double>::infinity());
    others = v.cumsum(2);
  }
  const torch::Tensor context = torch::where(is_chosen, scaled.softmax(-1).matmul(v), others);
  return torch::linear(context.contiguous().view({s.batch, s.length, -1}), p.out_layer().weight,
                       p.out_layer().bias);
}

TEST_P(ProbAttentionOf, EqualsTheFormulaWithGradients) {
  const auto& [s, flash] = GetParam();
  torch::manual_seed(1);
  torch::nn::Module owner;
  AttentionProjections projections;
  projections.register_in(owner, kHidden, s.heads);
  owner.to(torch::kDouble);
  const torch::Tensor x = torch::randn({s.batch, s.length, kHidden}, torch::kDouble);
  const torch::Tensor given = torch::randn({s.batch, s.keys, kHidden}, torch::kDouble);
  const torch::Tensor weight = torch::randn({s.batch, s.length, kHidden}, torch::kDouble);
  const ProbAttention attention(s.factor, s.causal, {.use_flash_attention = flash});

  std::vector<torch::Tensor> results[2];
  for (const bool ours : {false, true}) {
    owner.zero_grad();
    const torch::Tensor asks = x.clone().requires_grad_();
    // In self-attention, x and memory are the same tensor.
    const torch::Tensor answers = s.causal ? asks : given.clone().requires_grad_();
    torch::manual_seed(2);
    const torch::Tensor out = ours ? attention.forward(projections, asks, answers, true)
                                   : written_out(projections, s, asks, answers);
    (out * weight).sum().backward();
    results[ours] = {out.detach(), asks.grad(), answers.grad()};
    for (const torch::Tensor& parameter : owner.parameters()) {
      results[ours].push_back(parameter.grad().clone());
    }
  }
  ASSERT_EQ(results[0].size(), 11u);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_LT(max_difference(results[1][i], results[0][i]), kModelFloat64) << i;
  }
}

TEST(SampledBy, DrawsTheKeysOfItsSeedAndLeavesTorchsGeneratorAlone) {
  torch::manual_seed(1);
  torch::nn::Module owner;
  AttentionProjections projections;
  projections.register_in(owner, kHidden, /*heads=*/2);
  const torch::Tensor x = torch::randn({2, 50, kHidden});
  const ProbAttention attention(/*factor=*/1, /*causal=*/false, {});
  const torch::NoGradGuard no_grad;
  const auto forward = [&] { return attention.forward(projections, x, x, false); };
  const auto seeded = [&](uint64_t seed) {
    torch::manual_seed(seed);
    return forward();
  };
  const torch::Tensor expected = seeded(2);
  EXPECT_FALSE(torch::equal(seeded(3), expected));
  const torch::Tensor state = at::detail::getDefaultCPUGenerator().get_state();
  {
    const SampledBy own(at::detail::createCPUGenerator(2));
    EXPECT_TRUE(torch::equal(forward(), expected));
  }
  EXPECT_TRUE(torch::equal(at::detail::getDefaultCPUGenerator().get_state(), state));
  EXPECT_TRUE(torch::equal(seeded(2), expected));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ProbAttentionOf,
    testing::Combine(testing::Values(Shape{2, 3, 100, 31, 1,
                                           false},                   // mostly the mean, mixed heads
                                     Shape{2, 2, 64, 64, 1, false},  // a row is of one head
                                     Shape{3, 4, 20, 30, 2, false},  // most queries selected
                                     Shape{2, 1, 50, 9, 1, false},   // one head
                                     Shape{2, 2, 6, 8, 9, false},    // all queries selected
                                     Shape{2, 3, 41, 41, 1, true}, Shape{2, 2, 5, 5, 9, true},
                                     Shape{2, 5, 33, 33, 2, true}),  // 5 heads do not divide 24
                     testing::Bool()));

}  // namespace
}  // namespace flash::tests
