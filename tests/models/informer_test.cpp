// Informer with both attentions against neuralforecast's outputs, gradients and statistics.

#include <flash_attention/models/informer.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/parity.h"

namespace flash::tests {
namespace {

using models::Informer;
using models::InformerOptions;
using models::WindowsBatch;
using testing::HasSubstr;
using testing::ThrowsMessage;

InformerOptions tiny_informer() {
  return InformerOptions(/*h=*/4, /*input_size=*/24).hidden_size(8).n_head(2).conv_hidden_size(12);
}

INSTANTIATE_TEST_SUITE_P(
    Informer, AgainstPython,
    testing::ValuesIn(parity_cases({"informer_distil", "informer_futr_nodistil_mq",
                                    "informer_allqueries_3enc", "informer_train_bn"},
                                   {.flash = true})),
    parity_name);

TEST(InformerOptions, HaveTheDefaultsOfNeuralforecast) {
  const InformerOptions options(1, 2);
  EXPECT_EQ(options.decoder_input_size_multiplier(), 0.5);
  EXPECT_EQ(options.hidden_size(), 128);
  EXPECT_EQ(options.dropout(), 0.05);
  EXPECT_EQ(options.factor(), 3);
  EXPECT_EQ(options.n_head(), 4);
  EXPECT_EQ(options.conv_hidden_size(), 32);
  EXPECT_EQ(options.activation(), "gelu");
  EXPECT_EQ(options.encoder_layers(), 2);
  EXPECT_EQ(options.decoder_layers(), 1);
  EXPECT_TRUE(options.distil());
  EXPECT_FALSE(options.use_flash_attention());
}

TEST(InformerModel, WithOneHeadForecastsEachSampleIndependently) {
  // neuralforecast uses the queries that any sample selects for all samples, as its fixture shows.
  // The sampled keys are the same for any batch, so the forward of a single sample is the
  // reference.
  for (const bool flash : {false, true}) {
    torch::manual_seed(3);
    Informer model(tiny_informer().n_head(1).use_flash_attention(flash));
    model->eval();
    const torch::Tensor y = torch::randn({3, 24, 1});
    torch::manual_seed(5);
    const torch::Tensor together = model->forward(y);
    for (int64_t i = 0; i < 3; ++i) {
      torch::manual_seed(5);
      EXPECT_TRUE(torch::allclose(model->forward(y.slice(0, i, i + 1))[0], together[i], 0, 1e-5));
    }
  }
}

TEST(InformerModel, TrainsAlikeWithGradientCheckpointing) {
  std::vector<torch::Tensor> gradients[2];
  for (const bool recompute : {false, true}) {
    torch::manual_seed(3);
    Informer model(tiny_informer().dropout(0.2).gradient_checkpointing(recompute));
    const torch::Tensor y = torch::randn({3, 24, 1});
    model->forward(y).square().sum().backward();
    for (const auto& parameter : model->parameters())
      gradients[recompute].push_back(parameter.grad());
  }
  ASSERT_EQ(gradients[0].size(), gradients[1].size());
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    EXPECT_TRUE(torch::equal(gradients[0][i], gradients[1][i])) << i;
  }
}

TEST(InformerModel, RejectsInvalidOptionsAndWindows) {
  const auto expect = [](auto&& call, const char* message) {
    EXPECT_THAT(call, ThrowsMessage<c10::ValueError>(HasSubstr(message)));
  };
  expect([] { Informer(tiny_informer().hidden_size(7)); }, "expected an even hidden_size, got 7");
  expect([] { Informer(tiny_informer().activation("tanh")); },
         "Informer: expected activation \"relu\" or \"gelu\", got \"tanh\"");
  expect(
      [] { Informer(tiny_informer().decoder_input_size_multiplier(1.0)); },
      "expected decoder_input_size_multiplier to leave the decoder between 1 and input_size - 1");
  expect(
      [] {
        Informer(tiny_informer())->forward(torch::zeros({2, 23, 1}));
      },
      "Informer: expected insample_y [batch, 24, 1], got [2, 23, 1]");
  // The position table has 5000 rows. Here the decoder is longer than the encoder.
  expect([] { Informer(tiny_informer().h(3000).input_size(4100)); },
         "Informer: expected sequences of at most 5000 steps, got input_size 4100 and a decoder of "
         "5050");
  expect([] { Informer(tiny_informer().input_size(5001)); },
         "expected sequences of at most 5000 steps, got input_size 5001");
  EXPECT_NO_THROW(Informer(tiny_informer().input_size(5000)));
  Informer with_exog(tiny_informer().futr_exog_list({"hour"}));
  const torch::Tensor y = torch::zeros({2, 24, 1});
  expect([&] { with_exog->forward(y); },
         "expected futr_exog [2, 28, 1], since futr_exog_list names");
  expect(
      [&] {
        with_exog->forward(WindowsBatch{.insample_y = y, .futr_exog = torch::zeros({2, 24, 1})});
      },
      "expected futr_exog [2, 28, 1] (past and future rows), got [2, 24, 1]");
  expect([&] { Informer(tiny_informer())->forward(WindowsBatch{.insample_y = y, .stat_exog = y}); },
         "Informer: expected no stat_exog");
}

TEST(InformerModel, ClonesWithoutSharingParameters) {
  Informer model(tiny_informer().use_flash_attention(true));
  model->eval();
  const torch::Tensor y = torch::randn({2, 24, 1});
  auto copy = std::dynamic_pointer_cast<models::InformerImpl>(model->clone());
  ASSERT_NE(copy, nullptr);
  copy->eval();
  torch::manual_seed(1);
  const torch::Tensor expected = model->forward(y);
  torch::manual_seed(1);
  EXPECT_TRUE(torch::equal(copy->forward(y), expected));
  const torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : copy->parameters()) parameter.add_(1.0);
  torch::manual_seed(1);
  EXPECT_TRUE(torch::equal(model->forward(y), expected));
}

}  // namespace
}  // namespace flash::tests
