// FEDformer against neuralforecast, with exact attention, and its error handling.

#include <flash_attention/layer_kernels.h>
#include <flash_attention/models/fedformer.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>

#include "message_of.h"
#include "models/parity.h"

namespace flash::tests {
namespace {

using models::FEDformer;
using models::FEDformerOptions;

INSTANTIATE_TEST_SUITE_P(
    FEDformer, AgainstPython,
    testing::ValuesIn(parity_cases({"fedformer_low", "fedformer_random_futr_mq",
                                    "fedformer_defaultmodes_odd"},
                                   {.flash = false, .float64 = kModelFedformerCross})),
    parity_name);

FEDformerOptions small_fedformer() {
  return FEDformerOptions(/*h=*/5, /*input_size=*/24)
      .hidden_size(16)
      .conv_hidden_size(6)
      .MovingAvg_window(5)
      .modes(4)
      .dropout(0.0);
}

std::string refusal(const FEDformerOptions& options) {
  return message_of<c10::ValueError>([&] { FEDformer model(options); });
}

TEST(FEDformerOptions, HaveTheDefaultsOfNeuralforecast) {
  const FEDformerOptions options(1, 2);
  EXPECT_TRUE(options.futr_exog_list().empty());
  EXPECT_EQ(options.decoder_input_size_multiplier(), 0.5);
  EXPECT_EQ(options.version(), "Fourier");
  EXPECT_EQ(options.modes(), 64);
  EXPECT_EQ(options.mode_select(), "random");
  EXPECT_EQ(options.hidden_size(), 128);
  EXPECT_EQ(options.dropout(), 0.05);
  EXPECT_EQ(options.n_head(), 8);
  EXPECT_EQ(options.conv_hidden_size(), 32);
  EXPECT_EQ(options.activation(), "gelu");
  EXPECT_EQ(options.encoder_layers(), 2);
  EXPECT_EQ(options.decoder_layers(), 1);
  EXPECT_EQ(options.MovingAvg_window(), 25);
  EXPECT_EQ(options.random_seed(), 1);
  EXPECT_TRUE(options.fourier_index().empty());
  EXPECT_EQ(options.attention(), "native");
  EXPECT_FALSE(options.use_flash_attention());
}

TEST(FEDformerModel, RejectsOptionsOutOfRange) {
  EXPECT_EQ(refusal(small_fedformer().n_head(4)),
            "FEDformer: expected n_head 8, got 4; its Fourier blocks have 8 heads");
  EXPECT_EQ(refusal(small_fedformer().version("Wavelets")),
            "FEDformer: expected version \"Fourier\", got \"Wavelets\"; there is no other");
  EXPECT_EQ(refusal(small_fedformer().MovingAvg_window(4)),
            "FEDformer: expected an odd MovingAvg_window, which has a middle, got 4");
  // Built for 24 / 2 + 5 steps, the decoder would see 2 + 5 of them.
  EXPECT_EQ(
      refusal(small_fedformer().modes(8).mode_select("low").decoder_input_size_multiplier(0.05)),
      "FEDformer: expected frequencies between 0 and 3 in fourier_index \"dec_self\", since "
      "the sequence has 7 steps, got [0, 1, 2, 3, 4, 5, 6, 7]; take fewer modes or a larger "
      "decoder_input_size_multiplier");
  EXPECT_EQ(refusal(small_fedformer().fourier_index({{"enc_self", {1, 2}}})),
            "FEDformer: expected fourier_index with a list \"dec_self\", got none; leave "
            "fourier_index empty to have all frequencies chosen");
  EXPECT_EQ(refusal(small_fedformer().fourier_index({{"enc_self", {2, 1}},
                                                     {"dec_self", {1, 2}},
                                                     {"dec_cross_q", {1, 2}},
                                                     {"dec_cross_kv", {1, 2}}})),
            "FEDformer: expected fourier_index \"enc_self\" sorted and without repetition, got [2, "
            "1]");
}

TEST(FEDformerModel, AcceptsFrequenciesUpToHalfTheLength) {
  const auto with_highest = [](int64_t frequency) {
    return refusal(small_fedformer().fourier_index({{"enc_self", {1, frequency}},
                                                    {"dec_self", {1, 2}},
                                                    {"dec_cross_q", {1, 2}},
                                                    {"dec_cross_kv", {1, 2}}}));
  };
  EXPECT_EQ(with_highest(12), "no exception");
  EXPECT_EQ(with_highest(13),
            "FEDformer: expected frequencies between 0 and 12 in fourier_index \"enc_self\", since "
            "the sequence has 24 steps, got [1, 13]; take fewer modes or a larger "
            "decoder_input_size_multiplier");
}

TEST(FEDformerModel, DrawsNeuralforecastsFrequencies) {
  const Fixture fixture = load_fixture("fedformer_random_futr_mq");
  FEDformer model(FEDformerOptions(/*h=*/10, /*input_size=*/28).hidden_size(24).modes(6));
  EXPECT_EQ(model->options.fourier_index(),
            fixture.description.at("fourier_index").get<models::FourierIndex>());
  FEDformer other(
      FEDformerOptions(/*h=*/10, /*input_size=*/28).hidden_size(24).modes(6).random_seed(2));
  EXPECT_NE(other->options.fourier_index(), model->options.fourier_index());
}

TEST(FEDformerModel, ListsASharedBlockOnce) {
  FEDformer model(small_fedformer().encoder_layers(3).decoder_layers(2));
  std::set<const void*> distinct;
  size_t complex = 0;
  for (const torch::Tensor& parameter : model->parameters()) {
    distinct.insert(parameter.unsafeGetTensorImpl());
    complex += parameter.is_complex();
  }
  EXPECT_EQ(distinct.size(), model->parameters().size());
  EXPECT_EQ(complex, 3u);
  const auto tied = model->tied_parameters();
  EXPECT_EQ(tied.size(), 4u);
  EXPECT_EQ(tied.at("encoder.attn_layers.2.attention.inner_correlation.weights1"),
            "encoder.attn_layers.0.attention.inner_correlation.weights1");
  EXPECT_EQ(tied.at("decoder.layers.1.cross_attention.inner_correlation.weights1"),
            "decoder.layers.0.cross_attention.inner_correlation.weights1");
  for (const auto& [alias, owner] : tied) {
    EXPECT_TRUE(model->named_parameters().contains(owner)) << owner;
  }
}

TEST(FEDformerModel, KeepsWeightsComplexWhenThePrecisionChanges) {
  FEDformer model(small_fedformer());
  const auto weights = [&] {
    return model->named_parameters()["encoder.attn_layers.0.attention.inner_correlation.weights1"]
        .detach()
        .clone();
  };
  const torch::Tensor before = weights();
  model->to(torch::kDouble);
  EXPECT_EQ(weights().scalar_type(), torch::kComplexDouble);
  model->to(torch::kCPU, torch::kFloat);
  EXPECT_EQ(weights().scalar_type(), torch::kComplexFloat);
  EXPECT_TRUE(torch::equal(weights(), before));
}

TEST(FEDformerModel, ReplacesItsMechanismByExactAttention) {
  const auto outputs = [](const std::string& attention) {
    torch::manual_seed(1);
    FEDformer model(small_fedformer().attention(attention).encoder_layers(3).decoder_layers(2));
    model->to(torch::kDouble);
    const torch::Tensor input = torch::randn({3, 24, 1}, torch::kDouble).requires_grad_();
    const torch::Tensor output = model->forward(input);
    output.square().sum().backward();
    std::map<std::string, torch::Tensor> all = {{"output", output.detach()},
                                                {"input", input.grad()}};
    for (const auto& parameter : model->named_parameters()) {
      all.emplace(parameter.key(), parameter->grad());
    }
    return all;
  };
  auto native = outputs("native"), standard = outputs("standard"), flash = outputs("flash");
  ASSERT_EQ(standard.size(), native.size());  // the same parameters
  for (const auto& [name, tensor] : standard) {
    ASSERT_TRUE(flash.contains(name)) << name;
    ASSERT_EQ(tensor.defined(), flash[name].defined()) << name;
    EXPECT_EQ(tensor.defined(), !name.ends_with("weights1")) << name;  // unused there
    if (tensor.defined()) {
      EXPECT_LT(max_difference(flash[name], tensor), kGuideFloat64) << name;
    }
  }
  EXPECT_GT(max_difference(native["output"], standard["output"]), 1e-3);
}

TEST(FEDformerModel, TrainsAlikeWithGradientCheckpointing) {
  const auto gradients = [](bool recomputed) {
    torch::manual_seed(1);
    FEDformer model(
        small_fedformer().dropout(0.3).decoder_layers(2).gradient_checkpointing(recomputed));
    model->forward(torch::randn({4, 24, 1})).square().sum().backward();
    std::map<std::string, torch::Tensor> all;
    for (const auto& parameter : model->named_parameters()) {
      if (parameter->grad().defined()) all.emplace(parameter.key(), parameter->grad());
    }
    return all;
  };
  auto kept = gradients(false), recomputed = gradients(true);
  for (const auto& [name, gradient] : kept) {
    ASSERT_TRUE(recomputed.contains(name)) << name;
    // A shared block's gradient is a sum over layers, whose order may differ.
    EXPECT_LT(max_difference(recomputed[name], gradient), kModelFloat32) << name;
  }
}

TEST(FEDformerModel, ClonesWithoutSharingParameters) {
  FEDformer model(small_fedformer().encoder_layers(3).decoder_layers(2));
  model->to(torch::kDouble);
  model->eval();
  const torch::Tensor input = torch::randn({2, 24, 1}, torch::kDouble);
  const torch::Tensor output = model->forward(input);
  auto copy = std::dynamic_pointer_cast<models::FEDformerImpl>(model->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_TRUE(torch::equal(copy->forward(input), output));
  EXPECT_EQ(copy->parameters().size(), model->parameters().size());
  {
    torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : copy->parameters()) parameter.add_(1.0);
  }
  EXPECT_FALSE(torch::equal(copy->forward(input), output));
  EXPECT_TRUE(torch::equal(model->forward(input), output));
}

TEST(ComplexTanh, EqualsTorchWithGradients) {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    torch::manual_seed(1);
    const torch::Tensor scale = torch::logspace(-3, 2, 200, 10, torch::kDouble);
    torch::Tensor parts = (torch::randn({5, 2, 200}, torch::kDouble) * scale).to(dtype);
    // Away from the poles, near which the rounding of the argument dominates.
    const torch::Tensor near =
        (parts.select(1, 0).abs() < 0.2) & (parts.select(1, 1).cos().abs() < 0.2);
    parts = parts.masked_fill(near.unsqueeze(1), 0.5);
    const torch::Tensor weight = torch::randn({5, 2, 200}, dtype);
    torch::Tensor result = torch::empty_like(parts), gradient = torch::empty_like(parts);
    AT_DISPATCH_FLOATING_TYPES(dtype, "complex_tanh", [&] {
      for (int64_t i = 0; i < parts.size(0); ++i) {
        auto* const one = result[i].mutable_data_ptr<scalar_t>();
        kernels::complex_tanh(parts[i].const_data_ptr<scalar_t>(), one, 200);
        kernels::complex_tanh_backward(one, weight[i].const_data_ptr<scalar_t>(),
                                       gradient[i].mutable_data_ptr<scalar_t>(), 200);
      }
    });
    torch::Tensor exact = parts.detach().to(torch::kDouble).requires_grad_();
    const torch::Tensor expected =
        at::view_as_real(at::complex(exact.select(1, 0), exact.select(1, 1)).tanh()).movedim(2, 1);
    (expected * weight).sum().backward();
    const double tolerance = dtype == torch::kFloat ? kOperatorFloat32 : kOperatorFloat64;
    EXPECT_LT(max_difference(result, expected), tolerance);
    EXPECT_LT(max_difference(gradient, exact.grad()), 20 * tolerance);  // magnitudes up to 20
  }
}

}  // namespace
}  // namespace flash::tests
