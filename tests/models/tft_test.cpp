// TFT with both attentions against neuralforecast's outputs and gradients, and behaviour beyond the
// fixtures.

#include <flash_attention/models/tft.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "message_of.h"
#include "models/parity.h"
#include "ops/allocations.h"

namespace flash::tests {
namespace {

using models::TFT;
using models::TFTOptions;
using models::WindowsBatch;

INSTANTIATE_TEST_SUITE_P(TFT, AgainstPython,
                         testing::ValuesIn(parity_cases({"tft_noexog", "tft_futr_only_normal",
                                                         "tft_exog_mq_lstm2",
                                                         "tft_gru_oneinit_studentt"},
                                                        {.flash = true})),
                         parity_name);

TFTOptions small() { return TFTOptions(/*h=*/3, /*input_size=*/7).hidden_size(8).n_head(2); }

TFTOptions with_exogenous() {
  return small().futr_exog_list({"f"}).hist_exog_list({"x0", "x1"}).stat_exog_list({"s0", "s1"});
}

WindowsBatch random_windows(const TFTOptions& options, int64_t batch) {
  const auto columns = [](const std::vector<std::string>& names) {
    return static_cast<int64_t>(names.size());
  };
  WindowsBatch windows = {.insample_y = torch::randn({batch, options.input_size(), 1})};
  if (const int64_t n = columns(options.futr_exog_list()))
    windows.futr_exog = torch::randn({batch, options.input_size() + options.h(), n});
  if (const int64_t n = columns(options.hist_exog_list()))
    windows.hist_exog = torch::randn({batch, options.input_size(), n});
  if (const int64_t n = columns(options.stat_exog_list()))
    windows.stat_exog = torch::randn({batch, n});
  return windows;
}

TEST(TFTOptions, HaveTheDefaultsOfNeuralforecast) {
  const TFTOptions options(1, 2);
  EXPECT_EQ(options.tgt_size(), 1);
  EXPECT_EQ(options.hidden_size(), 128);
  EXPECT_EQ(options.n_head(), 4);
  EXPECT_EQ(options.attn_dropout(), 0.0);
  EXPECT_EQ(options.grn_activation(), "ELU");
  EXPECT_EQ(options.n_rnn_layers(), 1);
  EXPECT_EQ(options.rnn_type(), "lstm");
  EXPECT_FALSE(options.one_rnn_initial_state());
  EXPECT_EQ(options.dropout(), 0.1);
  EXPECT_TRUE(options.stat_exog_list().empty() && options.hist_exog_list().empty() &&
              options.futr_exog_list().empty());
  EXPECT_FALSE(options.use_flash_attention() || options.gradient_checkpointing());
}

TEST(TFTOptions, AcceptAModelConfig) {
  const auto options = TFTOptions(1, 2).config(
      {.use_flash_attention = true, .flash_block_size = 17, .gradient_checkpointing = true});
  EXPECT_TRUE(options.use_flash_attention() && options.gradient_checkpointing());
  EXPECT_EQ(options.flash_block_size(), 17);
}

TEST(TFTModel, RejectsOptionsOutOfRange) {
  const auto refused = [](const TFTOptions& options) {
    return message_of<c10::ValueError>([&] { TFT model(options); });
  };
  EXPECT_EQ(refused(small().h(0)), "TFT: expected h of at least 1, got 0");
  EXPECT_EQ(refused(small().dropout(-0.5)), "TFT: expected dropout between 0 and 1, got -0.5");
  EXPECT_EQ(refused(small().n_head(3)),
            "TFT: expected hidden_size to be a multiple of n_head, got hidden_size 8 and n_head 3");
  EXPECT_EQ(refused(small().rnn_type("RNN")),
            "TFT: expected rnn_type \"lstm\" or \"gru\", got \"RNN\"");
  EXPECT_EQ(refused(small().rnn_type("GRU")), "no exception");
  EXPECT_THAT(refused(small().grn_activation("GLU")),
              testing::HasSubstr("expected a grn_activation that keeps the width, got \"GLU\""));
}

TEST(TFTModel, RejectsInputsThatDoNotFit) {
  TFT model(with_exogenous());
  const auto refused = [&](const auto& change) {
    WindowsBatch windows = random_windows(with_exogenous(), 2);
    change(windows);
    return message_of<c10::ValueError>([&] { model->forward(windows); });
  };
  EXPECT_EQ(refused([](WindowsBatch& w) {
              w.insample_y = torch::zeros({2, 7, 3});
            }),
            "TFT: expected insample_y [batch, 7, 1], got [2, 7, 3]; the model is univariate, so "
            "give the columns of a table as windows of their own");
  EXPECT_EQ(refused([](WindowsBatch& w) { w.insample_y = torch::Tensor(); }),
            "TFT: expected insample_y [batch, 7, 1], got none");
  EXPECT_EQ(refused([](WindowsBatch& w) { w.futr_exog = w.futr_exog.slice(1, 3); }),
            "TFT: expected futr_exog [2, 10, 1] for the 1 variables of futr_exog_list, got "
            "[2, 7, 1]");
  EXPECT_EQ(refused([](WindowsBatch& w) { w.hist_exog = torch::Tensor(); }),
            "TFT: expected hist_exog [2, 7, 2] for the 2 variables of hist_exog_list, got none");
  EXPECT_EQ(refused([](WindowsBatch& w) {
              w.stat_exog = torch::zeros({2, 3});
            }),
            "TFT: expected stat_exog [2, 2] for the 2 variables of stat_exog_list, got [2, 3]");
  EXPECT_EQ(message_of<c10::ValueError>([] {
              TFT plain(small());
              plain->forward(random_windows(small().hist_exog_list({"x"}), 2));
            }),
            "TFT: expected no hist_exog, since hist_exog_list is empty, got [2, 7, 1]");
}

TEST(TFTModel, TreatsAnUnknownActivationAsEluWithAWarning) {
  torch::manual_seed(1);
  TFT elu(small());
  torch::manual_seed(1);
  TFT unknown(small().grn_activation("gelu"));
  elu->eval();
  unknown->eval();
  const WindowsBatch windows = random_windows(small(), 2);
  EXPECT_TRUE(torch::equal(elu->forward(windows), unknown->forward(windows)));
}

TEST(TFTModel, NormalisesAHiddenSizeOfOneAsNeuralforecastDoes) {
  const TFT model(small().hidden_size(1).n_head(1));
  const auto names = model->named_parameters();
  EXPECT_TRUE(names.contains("temporal_encoder.history_vsn.var_grns.0.layer_norm.ln.weight"));
  // The selection of a single variable has an output_size of 1.
  EXPECT_FALSE(names.contains("temporal_encoder.future_vsn.joint_grn.layer_norm.ln.weight"));
}

/// The derivative of the summed output along a random direction of all parameters and of the
/// series, from the backward and from two forwards.
std::pair<double, double> directional_derivatives(const TFTOptions& options, double step) {
  torch::manual_seed(4);
  TFT model(options);
  model->to(torch::kDouble);
  model->eval();
  WindowsBatch windows = random_windows(options, 3);
  for (torch::Tensor* t :
       {&windows.insample_y, &windows.futr_exog, &windows.hist_exog, &windows.stat_exog}) {
    if (t->defined()) *t = t->to(torch::kDouble);
  }
  std::vector<torch::Tensor> moved = model->parameters();
  moved.push_back(windows.insample_y.requires_grad_());
  const torch::Tensor factors = torch::randn({3, options.h(), 1}, torch::kDouble);
  const auto loss = [&] { return (model->forward(windows) * factors).sum(); };
  loss().backward();
  torch::NoGradGuard no_grad;
  double backward = 0.0;
  std::vector<torch::Tensor> directions;
  for (const torch::Tensor& tensor : moved) {
    directions.push_back(torch::randn_like(tensor));
    if (tensor.grad().defined())
      backward += (tensor.grad() * directions.back()).sum().item<double>();
  }
  const auto move = [&](double by) {
    for (size_t i = 0; i < moved.size(); ++i) moved[i].add_(directions[i], by);
  };
  move(step);
  const double above = loss().item<double>();
  move(-2 * step);
  return {backward, (above - loss().item<double>()) / (2 * step)};
}

TEST(TFTModel, HasCorrectGradientsForEveryActivation) {
  for (const char* activation :
       {"ReLU", "Softplus", "Tanh", "SELU", "LeakyReLU", "Sigmoid", "ELU", "GELU"}) {
    const auto [backward, slope] =
        directional_derivatives(with_exogenous().tgt_size(2).grn_activation(activation), 1e-6);
    EXPECT_NEAR(backward, slope, 1e-5 * std::max(1.0, std::abs(slope))) << activation;
  }
}

TEST(TFTModel, IsIndependentOfTheBatchSize) {
  // More rows than a block, and not a multiple of it.
  torch::manual_seed(3);
  TFT model(with_exogenous());
  model->eval();
  const WindowsBatch all = random_windows(with_exogenous(), 150);
  const auto part = [](const torch::Tensor& t) { return t.narrow(0, 60, 2); };
  const torch::Tensor whole = model->forward(all);
  const torch::Tensor few = model->forward({.insample_y = part(all.insample_y),
                                            .futr_exog = part(all.futr_exog),
                                            .hist_exog = part(all.hist_exog),
                                            .stat_exog = part(all.stat_exog)});
  EXPECT_LT(max_difference(part(whole), few), kModelFloat32);
}

TEST(TFTModel, PredictsTheSameWithoutGradients) {
  TFT model(with_exogenous());
  model->eval();
  const WindowsBatch windows = random_windows(with_exogenous(), 90);
  const torch::Tensor trained = model->forward(windows).detach();
  torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(model->forward(windows), trained));
}

/// The gradient of every parameter after one training step from this seed.
std::vector<torch::Tensor> gradients(TFTOptions options, uint64_t seed) {
  torch::manual_seed(1);
  TFT model(options.dropout(0.4).attn_dropout(0.3));
  const WindowsBatch windows = random_windows(options, 40);
  torch::manual_seed(seed);
  model->forward(windows).square().sum().backward();
  std::vector<torch::Tensor> all;
  for (const torch::Tensor& parameter : model->parameters()) {
    if (parameter.grad().defined()) all.push_back(parameter.grad());
  }
  return all;
}

TEST(TFTModel, DropsTheSameElementsWithEitherAttentionAndWithCheckpointing) {
  const auto first = gradients(with_exogenous(), 5);
  const auto compare = [&](const TFTOptions& options, uint64_t seed) {
    double difference = 0.0;
    const auto other = gradients(options, seed);
    EXPECT_EQ(other.size(), first.size());
    for (size_t i = 0; i < first.size(); ++i) {
      difference = std::max(difference, max_difference(first[i], other[i]) /
                                            (1.0 + first[i].abs().max().item<double>()));
    }
    return difference;
  };
  EXPECT_EQ(compare(with_exogenous(), 5), 0.0);
  EXPECT_GT(compare(with_exogenous(), 6), 1e-3);
  EXPECT_LT(compare(with_exogenous().gradient_checkpointing(true), 5), kTrainingLossFloat32);
  EXPECT_LT(compare(with_exogenous().use_flash_attention(true), 5), kTrainingLossFloat32);
}

TEST(TFTModel, AppliesDropoutAfterAttentionOnlyInTraining) {
  torch::manual_seed(1);
  TFT model(small().dropout(0.5));
  const WindowsBatch windows = random_windows(small(), 4);
  model->eval();
  EXPECT_TRUE(torch::equal(model->forward(windows), model->forward(windows)));
  // No other dropout.
  model->named_modules()["temporal_fusion_decoder.attention"]->train();
  EXPECT_FALSE(torch::equal(model->forward(windows), model->forward(windows)));
}

TEST(TFTModel, RejectsASecondDerivative) {
  TFT model(small());
  const torch::Tensor input = torch::randn({2, 7, 1}).requires_grad_();
  const torch::Tensor sum = model->forward(input).sum();
  EXPECT_THROW(torch::autograd::grad({sum}, {input}, {}, true, /*create_graph=*/true),
               c10::NotImplementedError);
}

/// Bytes that a forward and a backward need at their peak.
int64_t tft_step_bytes(int64_t input_size, const models::ModelConfig& config) {
  TFT model(TFTOptions(/*h=*/400, input_size).hidden_size(32).n_head(4).config(config));
  const torch::Tensor input = torch::randn({1, input_size, 1});
  return peak_beyond_result([&] {
    const torch::Tensor sum = model->forward(input).sum();
    sum.backward();
    return sum.detach();
  });
}

TEST(TFTModel, NeedsNoMemoryForScoresWithFlashAttention) {
  const int64_t scores = 4 * 400 * 4400 * 4;  // heads, queries, keys, bytes
  EXPECT_LT(tft_step_bytes(4000, {.use_flash_attention = true}), tft_step_bytes(4000, {}) - scores);
}

TEST(TFTModel, NeedsLessMemoryWithGradientCheckpointing) {
  EXPECT_LT(tft_step_bytes(4000, {.use_flash_attention = true, .gradient_checkpointing = true}),
            tft_step_bytes(4000, {.use_flash_attention = true}) * 3 / 4);
}

TEST(TFTModel, ClonesWithoutSharingParameters) {
  TFT model(with_exogenous().use_flash_attention(true));
  model->eval();
  const WindowsBatch windows = random_windows(with_exogenous(), 2);
  const torch::Tensor output = model->forward(windows);
  auto copy = std::dynamic_pointer_cast<models::TFTImpl>(model->clone());
  ASSERT_NE(copy, nullptr);
  copy->eval();
  EXPECT_TRUE(torch::equal(copy->forward(windows), output));
  {
    torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : copy->parameters())
      parameter.add_(torch::randn_like(parameter));
  }
  EXPECT_FALSE(torch::equal(copy->forward(windows), output));
  EXPECT_TRUE(torch::equal(model->forward(windows), output));
}

}  // namespace
}  // namespace flash::tests
