// PatchTST with both attentions against neuralforecast's outputs, gradients and statistics.

#include <flash_attention/models/patchtst.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <tuple>

#include "models/fixture.h"
#include "ops/allocations.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::PatchTST;
using models::TensorMap;

class PatchTSTAgainstPython : public testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  PatchTSTAgainstPython() : fixture_(load_fixture(std::get<0>(GetParam()))), model_(make_model()) {}

  PatchTST make_model() const {
    PatchTST model(patchtst_options(fixture_).use_flash_attention(std::get<1>(GetParam())));
    models::load_state_dict(*model, fixture_.under("param/"));
    model->train(fixture_.description.at("case").at("mode") == "train");
    return model;
  }

  /// The loss that the fixture's gradients belong to.
  torch::Tensor run_backward(torch::Tensor& input) {
    model_->to(torch::kDouble);
    input = fixture_.at("input/insample_y").to(torch::kDouble).requires_grad_();
    const torch::Tensor output = model_->forward(input);
    (output * fixture_.at("w/y_hat").to(torch::kDouble)).sum().backward();
    return output.detach();
  }

  Fixture fixture_;
  PatchTST model_;
};

TEST_P(PatchTSTAgainstPython, OutputMatchesInFloat64) {
  torch::Tensor input;
  EXPECT_LT(max_difference(run_backward(input), fixture_.at("out64/y_hat")), kModelFloat64);
}

TEST_P(PatchTSTAgainstPython, OutputMatchesInFloat32) {
  const double python = fixture_.description.at("f32_vs_f64_max_abs");
  const torch::Tensor output = model_->forward(fixture_.at("input/insample_y"));
  EXPECT_EQ(output.scalar_type(), torch::kFloat);
  EXPECT_LT(max_difference(output, fixture_.at("out64/y_hat")),
            std::max(kModelFloat32TimesPython * python, kModelFloat32));
}

TEST_P(PatchTSTAgainstPython, StoredGradientsMatch) {
  torch::Tensor input;
  run_backward(input);
  EXPECT_LT(max_difference(input.grad(), fixture_.at("grad64/input/insample_y")), kModelFloat64);
  const auto parameters = model_->named_parameters();
  const TensorMap expected = fixture_.under("grad64/param/");
  ASSERT_FALSE(expected.empty());
  for (const auto& [name, gradient] : expected) {
    EXPECT_LT(max_difference(parameters[name].grad(), gradient), kModelFloat64) << name;
  }
}

TEST_P(PatchTSTAgainstPython, EveryParametersGradientHasTheRecordedSums) {
  torch::Tensor input;
  run_backward(input);
  const nlohmann::json& recorded = fixture_.description.at("grad_stats");
  const auto parameters = model_->named_parameters();
  ASSERT_EQ(parameters.size(), recorded.size());
  for (const auto& parameter : parameters) {
    const torch::Tensor gradient = parameter->grad();
    const nlohmann::json& expected = recorded.at(parameter.key());
    ASSERT_EQ(gradient.defined(), !expected.is_null()) << parameter.key();
    if (!gradient.defined()) continue;
    const double sum_of_sizes = expected[1];
    const double tolerance = kModelFloat64 * std::max(1.0, sum_of_sizes);
    EXPECT_NEAR(gradient.sum().item<double>(), expected[0], tolerance) << parameter.key();
    EXPECT_NEAR(gradient.abs().sum().item<double>(), expected[1], tolerance) << parameter.key();
    EXPECT_NEAR(gradient.norm().item<double>(), expected[2], tolerance) << parameter.key();
  }
}

TEST_P(PatchTSTAgainstPython, BatchNormStatisticsMatchAfterTheForward) {
  torch::Tensor input;
  run_backward(input);
  // A fixture in eval mode stores none: there they must not have moved.
  const TensorMap after = fixture_.under("after/");
  const TensorMap before = fixture_.under("param/");
  for (const auto& buffer : model_->named_buffers()) {
    const torch::Tensor& expected = (after.empty() ? before : after).at(buffer.key());
    EXPECT_LT(max_difference(*buffer, expected), kModelFloat64) << buffer.key();
  }
}

TEST_P(PatchTSTAgainstPython, TheSameParametersAreTrained) {
  std::set<std::string> frozen;
  for (const std::string name : fixture_.description.at("requires_grad_false")) {
    if (!name.starts_with("loss.")) frozen.insert(name);
  }
  for (const auto& parameter : model_->named_parameters()) {
    EXPECT_EQ(parameter->requires_grad(), !frozen.contains(parameter.key())) << parameter.key();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Fixtures, PatchTSTAgainstPython,
    testing::Combine(testing::Values("patchtst_default_like", "patchtst_sdpa_prenorm_affine_mq",
                                     "patchtst_norevin_fixedpos_studentt", "patchtst_train_bn"),
                     testing::Bool()),
    [](const auto& info) {
      return std::get<0>(info.param) + (std::get<1>(info.param) ? "_flash" : "_standard");
    });

TEST(PatchTSTOptions, HaveNeuralforecastsDefaults) {
  const models::PatchTSTOptions options(1, 2);
  EXPECT_EQ(options.encoder_layers(), 3);
  EXPECT_EQ(options.n_heads(), 16);
  EXPECT_EQ(options.hidden_size(), 128);
  EXPECT_EQ(options.linear_hidden_size(), 256);
  EXPECT_EQ(options.dropout(), 0.2);
  EXPECT_EQ(options.attn_dropout(), 0.0);
  EXPECT_EQ(options.patch_len(), 16);
  EXPECT_EQ(options.stride(), 8);
  EXPECT_TRUE(options.revin() && options.revin_subtract_last() && !options.revin_affine());
  EXPECT_TRUE(options.res_attention() && !options.batch_normalization());
  EXPECT_FALSE(options.use_flash_attention());
}

TEST(PatchTSTOptions, TakeTheSharedConfig) {
  models::ModelConfig config;
  config.use_flash_attention = true;
  config.flash_block_size = 17;
  const auto options = models::PatchTSTOptions(1, 2).config(config);
  EXPECT_TRUE(options.use_flash_attention());
  EXPECT_EQ(options.flash_block_size(), 17);
}

TEST(PatchTSTModel, RefusesOptionsOutOfRange) {
  const auto message = [](const models::PatchTSTOptions& options) -> std::string {
    try {
      PatchTST model(options);
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "nothing";
  };
  EXPECT_EQ(message(tiny_options().stride(0)), "PatchTST: expected stride of at least 1, got 0");
  EXPECT_EQ(message(tiny_options().dropout(1.5)),
            "PatchTST: expected dropout between 0 and 1, got 1.5");
  EXPECT_EQ(message(tiny_options().n_heads(9)),
            "PatchTST: expected hidden_size of at least n_heads, got hidden_size 8 and n_heads 9");
  EXPECT_EQ(message(tiny_options().activation("tanh")),
            "PatchTST: expected activation \"gelu\" or \"relu\", got \"tanh\"");
  EXPECT_EQ(message(tiny_options().activation("ReLU")), "nothing");
}

TEST(PatchTSTModel, RefusesAnInputOfAnotherShape) {
  PatchTST model(tiny_options());
  try {
    model->forward(torch::zeros({2, 24, 3}));
    FAIL() << "expected an error";
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(std::string(error.what_without_backtrace()),
              "PatchTST: expected insample_y [batch, 24, 1], got [2, 24, 3]; the model is "
              "univariate, so give the columns of a table as windows of their own");
  }
}

TEST(PatchTSTModel, TakesPatchesLongerThanTheInput) {
  // Python clips the patch to input_size + stride, which leaves a single one.
  PatchTST model(models::PatchTSTOptions(/*h=*/3, /*input_size=*/10).hidden_size(16).n_heads(2));
  EXPECT_EQ(model->forward(torch::randn({2, 10, 1})).sizes(), (std::vector<int64_t>{2, 3, 1}));
}

TEST(PatchTSTModel, DropsAttentionWeightsOnlyInTraining) {
  for (const bool flash : {false, true}) {
    for (const bool residual : {false, true}) {
      torch::manual_seed(1);
      PatchTST model(
          tiny_options().attn_dropout(0.5).res_attention(residual).use_flash_attention(flash));
      const torch::Tensor input = torch::randn({2, 24, 1});
      EXPECT_FALSE(torch::equal(model->forward(input), model->forward(input)));
      model->eval();
      EXPECT_TRUE(torch::equal(model->forward(input), model->forward(input)));
    }
  }
}

/// Bytes that a forward and a backward need at their peak, with this many patches.
int64_t training_step_bytes(int64_t patches, bool flash) {
  PatchTST model(
      tiny_options().input_size(patches + 4).patch_len(6).stride(1).use_flash_attention(flash));
  const torch::Tensor input = torch::randn({1, patches + 4, 1});
  return peak_beyond_result([&] {
    const torch::Tensor sum = model->forward(input).sum();
    sum.backward();
    return sum.detach();
  });
}

TEST(PatchTSTModel, NeedsMemoryInProportionToThePatchesWithFlashAttention) {
  const auto growth = [](bool flash) {
    return static_cast<double>(training_step_bytes(2000, flash)) /
           static_cast<double>(training_step_bytes(1000, flash));
  };
  EXPECT_LT(growth(true), 2.1);   // twice, and nothing that grows faster
  EXPECT_GT(growth(false), 3.5);  // nearly four times: the matrices of scores
}

TEST(PatchTSTModel, ClonesWithoutSharingParameters) {
  PatchTST model(tiny_options().use_flash_attention(true));
  model->eval();
  const torch::Tensor input = torch::randn({2, 24, 1});
  const torch::Tensor output = model->forward(input);
  auto copy = std::dynamic_pointer_cast<models::PatchTSTImpl>(model->clone());
  ASSERT_NE(copy, nullptr);
  copy->eval();
  EXPECT_TRUE(torch::equal(copy->forward(input), output));
  {
    torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : copy->parameters()) parameter.add_(1.0);
  }
  EXPECT_FALSE(torch::equal(copy->forward(input), output));
  EXPECT_TRUE(torch::equal(model->forward(input), output));
}

}  // namespace
}  // namespace flash::tests
