// PatchTST against neuralforecast, its error handling, dropout and memory.

#include <flash_attention/models/patchtst.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "message_of.h"
#include "models/fixture.h"
#include "models/parity.h"
#include "ops/allocations.h"

namespace flash::tests {
namespace {

using models::PatchTST;

INSTANTIATE_TEST_SUITE_P(
    PatchTST, AgainstPython,
    testing::ValuesIn(parity_cases({"patchtst_default_like", "patchtst_sdpa_prenorm_affine_mq",
                                    "patchtst_norevin_fixedpos_studentt", "patchtst_train_bn"},
                                   {.flash = true})),
    parity_name);

TEST(PatchTSTOptions, HaveTheDefaultsOfNeuralforecast) {
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

TEST(PatchTSTOptions, AcceptAModelConfig) {
  models::ModelConfig config;
  config.use_flash_attention = true;
  config.flash_block_size = 17;
  config.gradient_checkpointing = true;
  const auto options = models::PatchTSTOptions(1, 2).config(config);
  EXPECT_TRUE(options.use_flash_attention());
  EXPECT_EQ(options.flash_block_size(), 17);
  EXPECT_TRUE(options.gradient_checkpointing());
}

TEST(PatchTSTModel, RejectsOptionsOutOfRange) {
  const auto message = [](const models::PatchTSTOptions& options) {
    return message_of<c10::ValueError>([&] { PatchTST model(options); });
  };
  EXPECT_EQ(message(tiny_options().stride(0)), "PatchTST: expected stride of at least 1, got 0");
  EXPECT_EQ(message(tiny_options().stride(int64_t{1} << 62)),
            "PatchTST: expected stride of at most 2147483647, got 4611686018427387904");
  EXPECT_EQ(message(tiny_options().dropout(1.5)),
            "PatchTST: expected dropout between 0 and 1, got 1.5");
  EXPECT_EQ(message(tiny_options().n_heads(9)),
            "PatchTST: expected hidden_size of at least n_heads, got hidden_size 8 and n_heads 9");
  EXPECT_EQ(message(tiny_options().activation("tanh")),
            "PatchTST: expected activation \"gelu\" or \"relu\", got \"tanh\"");
  EXPECT_EQ(message(tiny_options().activation("ReLU")), "no exception");
}

TEST(PatchTSTModel, ClampsLongStrides) {
  // Patches of 4 and 40 in a window of 24 steps, adjacent and far apart.
  for (const int64_t patch_len : {4, 40}) {
    const auto output = [&](int64_t stride) {
      torch::manual_seed(3);
      PatchTST model(tiny_options().patch_len(patch_len).stride(stride));
      model->eval();
      return model->forward(torch::arange(48.0F).sin().view({2, 24, 1}));
    };
    const torch::Tensor expected = output(patch_len == 4 ? 24 : 40);
    EXPECT_TRUE(torch::equal(output(100), expected));
    EXPECT_TRUE(torch::equal(output(std::numeric_limits<int32_t>::max()), expected));
  }
}

TEST(PatchTSTModel, RejectsInputsOfTheWrongShape) {
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

TEST(PatchTSTModel, RejectsExogenousColumns) {
  PatchTST model(tiny_options());
  try {
    model->forward({.insample_y = torch::zeros({2, 24, 1}), .futr_exog = torch::zeros({2, 28, 3})});
    FAIL() << "expected an error";
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(std::string(error.what_without_backtrace()),
              "PatchTST: expected no futr_exog, got a tensor [2, 28, 3]; the model uses only the "
              "series; use TFT for exogenous columns of every kind");
  }
}

TEST(PatchTSTModel, TrainsAlikeWithGradientCheckpointing) {
  for (const bool flash : {false, true}) {
    const auto gradients = [&](bool recomputed) {
      torch::manual_seed(1);
      PatchTST model(tiny_options()
                         .dropout(0.3)
                         .attn_dropout(0.2)
                         .use_flash_attention(flash)
                         .gradient_checkpointing(recomputed));
      model->forward(torch::randn({4, 24, 1})).square().sum().backward();
      std::vector<torch::Tensor> all;
      for (const torch::Tensor& parameter : model->parameters()) {
        if (parameter.requires_grad()) all.push_back(parameter.grad().flatten());
      }
      return torch::cat(all);
    };
    EXPECT_TRUE(torch::equal(gradients(true), gradients(false)));
  }
}

TEST(PatchTSTModel, AcceptsPatchesLongerThanTheInput) {
  // The patch is clipped to input_size + stride, which leaves a single one.
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

TEST(PatchTSTModel, DropsTheSameAttentionWeightsWithEitherAttention) {
  for (const bool residual : {false, true}) {
    const auto output = [&](bool flash) {
      torch::manual_seed(1);
      PatchTST model(
          tiny_options().attn_dropout(0.5).res_attention(residual).use_flash_attention(flash));
      model->to(torch::kDouble);
      return model->forward(torch::randn({2, 24, 1}, torch::kDouble));
    };
    EXPECT_LT(max_difference(output(true), output(false)), kModelFloat64) << residual;
  }
}

TEST(PatchTSTModel, AppliesHeadDropoutOnlyInTraining) {
  torch::manual_seed(1);
  const torch::Tensor input = torch::randn({16, 24, 1});
  PatchTST half(tiny_options().head_dropout(0.5));
  EXPECT_FALSE(torch::equal(half->forward(input), half->forward(input)));
  half->eval();
  EXPECT_TRUE(torch::equal(half->forward(input), half->forward(input)));
  PatchTST all(tiny_options().head_dropout(1.0).revin(false));
  EXPECT_EQ(all->forward(input).count_nonzero().item<int64_t>(), 0);
}

TEST(PatchTSTModel, AppliesDropoutTwiceToTheAttentionOutput) {
  // Only that dropout remains of the network: tokens are 0, the attention's output is 1 everywhere,
  // the norms use no statistics of the batch, the feed-forward layer returns 0, and the head passes
  // on 8 patches of 8 elements.
  PatchTST model(tiny_options().h(64).encoder_layers(1).revin(false).dropout(0.5));
  {
    const torch::NoGradGuard no_grad;
    auto parameters = model->named_parameters();
    for (const auto& parameter : parameters) {
      if (parameter.key().find("norm_") == std::string::npos) parameter->zero_();
    }
    parameters["model.backbone.encoder.layers.0.self_attn.to_out.0.bias"].fill_(1.0);
    torch::nn::init::eye_(parameters["model.head.linear.weight"]);
  }
  for (const auto& module : model->named_modules()) {
    if (module.key().find("norm_") != std::string::npos) module.value()->eval();
  }
  torch::manual_seed(1);
  const torch::Tensor output = model->forward(torch::randn({256, 24, 1}));
  const torch::Tensor kept = output.masked_select(output != 0);
  // An element survives both with probability 1/4; within six standard deviations of 16,384 draws.
  EXPECT_NEAR(static_cast<double>(kept.numel()) / static_cast<double>(output.numel()), 0.25, 0.02);
  // Doubled twice; the epsilon of 1e-5 in two norms reduces it by 4e-5.
  EXPECT_LT(kept.sub(4.0).abs().max().item<double>(), 1e-4);
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

TEST(PatchTSTModel, NeedsLinearMemoryInThePatchesWithFlashAttention) {
  const auto growth = [](bool flash) {
    return static_cast<double>(training_step_bytes(2000, flash)) /
           static_cast<double>(training_step_bytes(1000, flash));
  };
  EXPECT_LT(growth(true), 2.1);   // linear
  EXPECT_GT(growth(false), 3.5);  // almost quadratic: the score matrices
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
