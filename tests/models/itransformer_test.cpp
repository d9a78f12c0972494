// iTransformer with both attentions against neuralforecast's outputs and gradients.

#include <flash_attention/models/itransformer.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/parity.h"
#include "ops/allocations.h"

namespace flash::tests {
namespace {

using models::ITransformer;
using models::ITransformerOptions;
using models::WindowsBatch;
using testing::HasSubstr;
using testing::ThrowsMessage;

ITransformerOptions tiny_itransformer(int64_t series = 3) {
  return ITransformerOptions(/*h=*/4, /*input_size=*/10, series).hidden_size(8).n_heads(2).d_ff(12);
}

INSTANTIATE_TEST_SUITE_P(ITransformer, AgainstPython,
                         testing::ValuesIn(parity_cases({"itransformer_base", "itransformer_futr",
                                                         "itransformer_mq_layout_quirk",
                                                         "itransformer_nonorm_normal"},
                                                        {.flash = true})),
                         parity_name);

TEST(ITransformerOptions, HaveTheDefaultsOfNeuralforecast) {
  const ITransformerOptions options(1, 2, 3);
  EXPECT_EQ(options.hidden_size(), 512);
  EXPECT_EQ(options.n_heads(), 8);
  EXPECT_EQ(options.e_layers(), 2);
  EXPECT_EQ(options.d_layers(), 1);
  EXPECT_EQ(options.d_ff(), 2048);
  EXPECT_EQ(options.factor(), 1);
  EXPECT_EQ(options.dropout(), 0.1);
  EXPECT_TRUE(options.use_norm());
  EXPECT_FALSE(options.use_flash_attention());
}

TEST(ITransformerModel, DropsTheSameElementsWithEitherAttentionAndWithCheckpointing) {
  std::vector<torch::Tensor> outputs;
  for (const auto& [flash, recompute] : {std::pair(false, false), {true, false}, {true, true}}) {
    torch::manual_seed(3);
    ITransformer model(
        tiny_itransformer().dropout(0.3).use_flash_attention(flash).gradient_checkpointing(
            recompute));
    model->to(torch::kDouble);
    const torch::Tensor y = torch::randn({2, 10, 3}, torch::kDouble).requires_grad_();
    const torch::Tensor output = model->forward(y);
    output.square().sum().backward();
    outputs.push_back(torch::cat({output.detach().flatten(), y.grad().flatten()}));
  }
  EXPECT_LT(max_difference(outputs[0], outputs[1]), kModelFloat64);
  EXPECT_LT(max_difference(outputs[1], outputs[2]), kModelFloat64);
}

TEST(ITransformerModel, DropsAttentionWeightsOnlyInTraining) {
  for (const bool flash : {false, true}) {
    torch::manual_seed(3);
    ITransformer model(tiny_itransformer().dropout(0.5).use_flash_attention(flash));
    const torch::Tensor y = torch::randn({2, 10, 3});
    model->eval();
    EXPECT_TRUE(torch::equal(model->forward(y), model->forward(y)));
    // Nothing else is dropped, so only the attention weights can differ.
    for (const auto& module : model->named_modules()) {
      if (module.key().ends_with(".attention")) module.value()->train();
    }
    EXPECT_FALSE(torch::equal(model->forward(y), model->forward(y)));
  }
}

TEST(ITransformerModel, NeedsLinearMemoryInTheSeriesWithFlashAttention) {
  const auto bytes = [](int64_t series, bool flash) {
    ITransformer model(tiny_itransformer(series).e_layers(1).use_flash_attention(flash));
    const torch::Tensor y = torch::randn({1, 10, series});
    return static_cast<double>(peak_beyond_result([&] {
      const torch::Tensor sum = model->forward(y).sum();
      sum.backward();
      return sum.detach();
    }));
  };
  EXPECT_LT(bytes(2000, true) / bytes(1000, true), 2.1);    // linear
  EXPECT_GT(bytes(2000, false) / bytes(1000, false), 3.5);  // almost quadratic: score matrices
}

TEST(ITransformerModel, RejectsInvalidOptionsAndWindows) {
  const auto expect = [](auto&& call, const char* message) {
    EXPECT_THAT(call, ThrowsMessage<c10::ValueError>(HasSubstr(message)));
  };
  expect([] { ITransformer(tiny_itransformer(0)); },
         "iTransformer: expected n_series of at least 1, got 0");
  expect([] { ITransformer(tiny_itransformer().n_heads(9)); },
         "iTransformer: expected hidden_size of at least n_heads");
  const torch::Tensor y = torch::zeros({2, 10, 3});
  expect([&] { ITransformer(tiny_itransformer())->forward(y.slice(2, 1)); },
         "iTransformer: expected insample_y [batch, 10, 3], got [2, 10, 2]");
  expect(
      [&] {
        ITransformer(tiny_itransformer())
            ->forward(WindowsBatch{.insample_y = y, .futr_exog = torch::zeros({2, 1, 14, 3})});
      },
      "iTransformer: expected no futr_exog");
  expect(
      [&] {
        ITransformer(tiny_itransformer().futr_exog_list({"price"}))
            ->forward(WindowsBatch{.insample_y = y, .futr_exog = torch::zeros({2, 14, 3, 1})});
      },
      "expected futr_exog [batch, columns, input_size + h, n_series] = [2, 1, 14, 3]");
}

TEST(ITransformerModel, ClonesWithoutSharingParameters) {
  ITransformer model(tiny_itransformer().use_flash_attention(true));
  model->eval();
  const torch::Tensor y = torch::randn({2, 10, 3});
  const torch::Tensor expected = model->forward(y);
  auto copy = std::dynamic_pointer_cast<models::ITransformerImpl>(model->clone());
  ASSERT_NE(copy, nullptr);
  copy->eval();
  EXPECT_TRUE(torch::equal(copy->forward(y), expected));
  const torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : copy->parameters()) parameter.add_(1.0);
  EXPECT_TRUE(torch::equal(model->forward(y), expected));
}

}  // namespace
}  // namespace flash::tests
