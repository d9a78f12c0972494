// The classes of the integration guide: FlashAttention and MultiHeadAttention.

#include <flash_attention/flash_attention.h>
#include <flash_attention/multi_head_attention.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "ops/allocations.h"
#include "ops/testing.h"
#include "tolerances.h"

namespace flash {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using tests::largest_difference;
using torch::Tensor;

struct GuideInputs {
  Tensor query, key, value;
};

GuideInputs random_inputs(std::vector<int64_t> shape, torch::Dtype dtype = torch::kDouble) {
  torch::manual_seed(11);
  return {torch::randn(shape, dtype), torch::randn(shape, dtype), torch::randn(shape, dtype)};
}

template <class Call>
std::string value_error(Call&& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "no c10::ValueError";
}

TEST(FlashAttention, MatchesStandardAttentionWithinTheGuidesFigure) {
  const auto [q, k, v] = random_inputs({4, 512, 64});
  const double scale = 1.0 / std::sqrt(8.0);
  for (const bool causal : {false, true}) {
    const FlashAttention flash({.scale = scale, .causal = causal});
    const Tensor expected = standard_attention(q, k, v, scale, causal);
    EXPECT_LT(largest_difference(flash.forward(q, k, v), expected), tests::kGuideFloat64);
  }
}

TEST(FlashAttention, PassesOnEveryFieldOfItsConfig) {
  const auto [q, k, v] = random_inputs({2, 3, 150, 24});
  const FlashAttention flash({.block_size = 32, .scale = 0.3, .causal = true, .use_simd = false});
  const auto options = AttentionOptions().block_size(32).scale(0.3).causal(true).use_simd(false);
  EXPECT_TRUE(torch::equal(flash.forward(q, k, v), attention(q, k, v, options)));
}

TEST(FlashAttention, DefaultsAreThoseOfTheGuide) {
  const FlashAttentionConfig config;
  EXPECT_EQ(config.block_size, 64);
  EXPECT_EQ(config.scale, std::nullopt);
  EXPECT_FALSE(config.causal);
  EXPECT_TRUE(config.use_simd);
  EXPECT_EQ(config.dropout, 0.0);
  const auto [q, k, v] = random_inputs({2, 40, 8});
  EXPECT_TRUE(torch::equal(FlashAttention().forward(q, k, v), attention(q, k, v)));
}

TEST(FlashAttention, DropsWeightsWheneverDropoutIsConfigured) {
  const auto [q, k, v] = random_inputs({2, 2, 60, 8});
  const FlashAttention flash({.dropout = 0.5});
  torch::manual_seed(3);
  const Tensor dropped = flash.forward(q, k, v);
  torch::manual_seed(3);
  EXPECT_TRUE(torch::equal(dropped, attention(q, k, v, AttentionOptions().dropout(0.5))));
  EXPECT_GT(largest_difference(dropped, attention(q, k, v)), 0.01);
}

TEST(FlashAttention, ThreeDimensionalInputHasOneHead) {
  const auto [q, k, v] = random_inputs({2, 70, 16});
  const FlashAttention flash({.causal = true});
  const Tensor four = flash.forward(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1));
  EXPECT_TRUE(torch::equal(flash.forward(q, k, v), four.squeeze(1)));
}

TEST(FlashAttention, MemoryUsageEqualsWhatForwardAllocates) {
  for (const int64_t length : {128, 512, 1024, 2048, 4096}) {
    for (const auto& [batch, d_v, block_size] :
         {std::tuple{1, 64, 64}, {3, 64, 64}, {1, 20, 64}, {1, 64, 256}, {1, 64, 7}}) {
      const auto q = torch::randn({batch, length, 64}, torch::kDouble);
      const auto v = torch::randn({batch, length, d_v}, torch::kDouble);
      const FlashAttention flash({.block_size = block_size});
      EXPECT_EQ(tests::peak_beyond_result([&] { return flash.forward(q, q, v); }),
                flash.memory_usage(length, 64, d_v, batch))
          << "length " << length << ", batch " << batch << ", d_v " << d_v << ", block_size "
          << block_size;
    }
  }
}

TEST(FlashAttention, MemoryUsageGrowsByTwoElementsPerRow) {
  const FlashAttention flash;
  const int64_t row = 2 * sizeof(double);
  EXPECT_EQ(flash.memory_usage(4096, 64, 64, 1) - flash.memory_usage(2048, 64, 64, 1), 2048 * row);
  EXPECT_EQ(flash.memory_usage(2048, 64, 64, 9) - flash.memory_usage(2048, 64, 64, 8), 2048 * row);
}

TEST(FlashAttention, MemorySavingsRatioIsScoresOverUsage) {
  const FlashAttention flash;
  const double usage = static_cast<double>(flash.memory_usage(1024, 64, 64, 1));
  EXPECT_DOUBLE_EQ(flash.memory_savings_ratio(1024), 1024.0 * 1024.0 * 8.0 / usage);
  const double batched = static_cast<double>(flash.memory_usage(512, 32, 16, 8));
  EXPECT_DOUBLE_EQ(flash.memory_savings_ratio(512, 32, 16, 8), 8.0 * 512.0 * 512.0 * 8.0 / batched);
}

TEST(FlashAttention, RejectsAConfigThatTheOperatorRejects) {
  const Tensor x = at::randn({1, 4, 8});
  EXPECT_THAT(value_error([&] { FlashAttention({.block_size = 0}).forward(x, x, x); }),
              HasSubstr("block_size"));
  EXPECT_THAT(value_error([&] { FlashAttention({.dropout = 1.5}).forward(x, x, x); }),
              HasSubstr("dropout"));
}

// Two modules with the same weights, one for each mode.
std::pair<MultiHeadAttention, MultiHeadAttention> both_modes(MultiHeadAttentionConfig config) {
  torch::manual_seed(5);
  config.mode = AttentionMode::Flash;
  MultiHeadAttention flash(config);
  config.mode = AttentionMode::Standard;
  torch::manual_seed(5);
  MultiHeadAttention standard(config);
  flash->to(torch::kDouble);
  standard->to(torch::kDouble);
  return {flash, standard};
}

TEST(MultiHeadAttention, BothModesGiveTheSameOutputsAndGradients) {
  for (const bool causal : {false, true}) {
    auto [flash, standard] =
        both_modes({.d_model = 48, .num_heads = 6, .dropout = 0.3, .causal = causal});
    const auto [query, memory, grad] = random_inputs({2, 70, 48});
    std::vector<std::vector<Tensor>> results;
    for (MultiHeadAttention module : {flash, standard}) {
      torch::manual_seed(9);  // both modes draw the same dropout mask
      Tensor out = module->forward(query, memory, memory);
      std::vector<Tensor> result = torch::autograd::grad({out}, module->parameters(), {grad});
      result.push_back(out.detach());
      results.push_back(result);
    }
    ASSERT_EQ(results[0].size(), 9u);
    for (size_t i = 0; i < results[0].size(); ++i) {
      EXPECT_LT(largest_difference(results[0][i], results[1][i]), tests::kGuideFloat64) << i;
    }
  }
}

TEST(MultiHeadAttention, EqualsTheFormulaOfThePaper) {
  auto [module, unused] = both_modes({.d_model = 12, .num_heads = 3});
  const auto [query, key, value] = random_inputs({1, 9, 12});
  const Tensor q = module->q_proj(query), k = module->k_proj(key), v = module->v_proj(value);
  std::vector<Tensor> heads;
  for (int64_t h = 0; h < 3; ++h) {
    const Tensor scores = q.narrow(2, 4 * h, 4).matmul(k.narrow(2, 4 * h, 4).mT()) / 2.0;
    heads.push_back(torch::softmax(scores, -1).matmul(v.narrow(2, 4 * h, 4)));
  }
  const Tensor expected = module->out_proj(torch::cat(heads, -1));
  EXPECT_LT(largest_difference(module->forward(query, key, value), expected), tests::kGuideFloat64);
}

TEST(MultiHeadAttention, UsesItsModeAndBlockSizeBitForBit) {
  MultiHeadAttention module(
      MultiHeadAttentionConfig{.d_model = 48, .num_heads = 6, .flash_block_size = 7});
  const auto [query, key, value] = random_inputs({2, 70, 48}, torch::kFloat);
  const auto heads = [](const Tensor& x) { return x.unflatten(2, {6, 8}).transpose(1, 2); };
  const Tensor q = heads(module->q_proj(query)), k = heads(module->k_proj(key)),
               v = heads(module->v_proj(value));
  const auto merged = [&](const Tensor& out) {
    return module->out_proj(out.transpose(1, 2).flatten(2));
  };
  const Tensor flash = merged(attention(q, k, v, AttentionOptions().block_size(7)));
  const Tensor standard = merged(standard_attention(q, k, v));
  // Otherwise the comparison of bits below would show nothing.
  ASSERT_FALSE(torch::equal(flash, merged(attention(q, k, v))));
  ASSERT_FALSE(torch::equal(flash, standard));
  EXPECT_TRUE(torch::equal(module->forward(query, key, value), flash));
  module->config.mode = AttentionMode::Standard;
  EXPECT_TRUE(torch::equal(module->forward(query, key, value), standard));
}

TEST(MultiHeadAttention, DropsWeightsOnlyWhileTraining) {
  auto [module, unused] = both_modes({.d_model = 16, .num_heads = 2, .dropout = 0.5});
  const auto [x, y, z] = random_inputs({2, 30, 16});
  const auto training_difference =
      largest_difference(module->forward(x, x, x), module->forward(x, x, x));
  EXPECT_GT(training_difference, 1e-3);
  module->eval();
  EXPECT_TRUE(torch::equal(module->forward(x, x, x), module->forward(x, x, x)));
}

TEST(MultiHeadAttention, AcceptsKeysOfAnotherLength) {
  auto [flash, standard] = both_modes({.d_model = 16, .num_heads = 4});
  const auto query = torch::randn({3, 10, 16}, torch::kDouble);
  const auto memory = torch::randn({3, 33, 16}, torch::kDouble);
  const Tensor out = flash->forward(query, memory, memory);
  EXPECT_EQ(out.sizes(), query.sizes());
  EXPECT_LT(largest_difference(out, standard->forward(query, memory, memory)),
            tests::kGuideFloat64);
}

TEST(MultiHeadAttention, CausalOutputDoesNotSeeLaterPositions) {
  auto [module, unused] = both_modes({.d_model = 16, .num_heads = 4, .causal = true});
  const auto x = torch::randn({1, 40, 16}, torch::kDouble);
  Tensor changed = x.clone();
  changed.narrow(1, 25, 15).fill_(100.0);
  const Tensor before = module->forward(x, x, x),
               after = module->forward(changed, changed, changed);
  EXPECT_TRUE(torch::equal(before.narrow(1, 0, 25), after.narrow(1, 0, 25)));
  EXPECT_GT(largest_difference(before, after), 0.01);
}

TEST(MultiHeadAttention, HasTheParameterNamesOfThePythonModule) {
  MultiHeadAttention module(MultiHeadAttentionConfig{.d_model = 8, .num_heads = 2});
  EXPECT_THAT(module->named_parameters().keys(),
              ElementsAre("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias",
                          "v_proj.weight", "v_proj.bias", "out_proj.weight", "out_proj.bias"));
}

TEST(MultiHeadAttention, CloneSharesNoMemory) {
  MultiHeadAttention module(MultiHeadAttentionConfig{.d_model = 8, .num_heads = 2});
  const auto copy = std::dynamic_pointer_cast<MultiHeadAttentionImpl>(module->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_TRUE(torch::equal(copy->q_proj->weight, module->q_proj->weight));
  torch::NoGradGuard no_grad;
  copy->q_proj->weight.zero_();
  EXPECT_FALSE(torch::equal(copy->q_proj->weight, module->q_proj->weight));
}

TEST(MultiHeadAttention, RejectsAWidthThatTheHeadsDoNotDivide) {
  EXPECT_EQ(value_error([] {
              MultiHeadAttention(MultiHeadAttentionConfig{.d_model = 10, .num_heads = 4});
            }),
            "flash::MultiHeadAttention: expected d_model as a positive multiple of num_heads, got "
            "d_model 10 and num_heads 4");
  EXPECT_THAT(value_error([] { MultiHeadAttention(MultiHeadAttentionConfig{.d_model = 8}); }),
              HasSubstr("num_heads 0"));
}

TEST(MultiHeadAttention, NamesTheInputOfTheWrongShape) {
  MultiHeadAttention module(MultiHeadAttentionConfig{.d_model = 8, .num_heads = 2});
  const auto good = torch::randn({2, 5, 8});
  EXPECT_EQ(value_error([&] {
              module->forward(good, torch::randn({2, 5, 9}), good);
            }),
            "flash::MultiHeadAttention: expected key as [batch, length, 8], got [2, 5, 9]");
  EXPECT_THAT(value_error([&] { module->forward(good[0], good, good); }), HasSubstr("query"));
  EXPECT_THAT(value_error([&] { module->forward(good, good, good.narrow(1, 0, 3)); }),
              HasSubstr("flash::attention: expected"));
}

}  // namespace
}  // namespace flash
