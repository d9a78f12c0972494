// Autoformer against neuralforecast, with exact attention, and its error handling.

#include <flash_attention/dropout.h>
#include <flash_attention/models/autoformer.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <limits>

#include "layers/decomposition/auto_correlation.h"
#include "layers/decomposition/series_decomposition.h"
#include "message_of.h"
#include "models/parity.h"

namespace flash::tests {
namespace {

using models::Autoformer;
using models::AutoformerOptions;

INSTANTIATE_TEST_SUITE_P(Autoformer, AgainstPython,
                         testing::ValuesIn(parity_cases({"autoformer_even",
                                                         "autoformer_odd_futr_declonger_mq",
                                                         "autoformer_train"},
                                                        {.flash = false})),
                         parity_name);

AutoformerOptions small_autoformer() {
  return AutoformerOptions(/*h=*/5, /*input_size=*/24)
      .hidden_size(8)
      .n_head(2)
      .conv_hidden_size(6)
      .MovingAvg_window(5)
      .dropout(0.0);
}

std::string refusal(const AutoformerOptions& options) {
  return message_of<c10::ValueError>([&] { Autoformer model(options); });
}

std::string refusal(Autoformer& model, const models::WindowsBatch& windows) {
  return message_of<c10::ValueError>([&] { model->forward(windows); });
}

TEST(AutoformerOptions, HaveTheDefaultsOfNeuralforecast) {
  const AutoformerOptions options(1, 2);
  EXPECT_TRUE(options.futr_exog_list().empty());
  EXPECT_FALSE(options.exclude_insample_y());
  EXPECT_EQ(options.decoder_input_size_multiplier(), 0.5);
  EXPECT_EQ(options.hidden_size(), 128);
  EXPECT_EQ(options.dropout(), 0.05);
  EXPECT_EQ(options.factor(), 3);
  EXPECT_EQ(options.n_head(), 4);
  EXPECT_EQ(options.conv_hidden_size(), 32);
  EXPECT_EQ(options.activation(), "gelu");
  EXPECT_EQ(options.encoder_layers(), 2);
  EXPECT_EQ(options.decoder_layers(), 1);
  EXPECT_EQ(options.MovingAvg_window(), 25);
  EXPECT_EQ(options.attention(), "native");
  EXPECT_FALSE(options.use_flash_attention());
}

TEST(AutoformerModel, AcceptsMovingAveragesLongerThanTheSeries) {
  Autoformer model(small_autoformer().MovingAvg_window(std::numeric_limits<int32_t>::max()));
  const torch::Tensor series = torch::randn({2, 24, 1}).requires_grad_();
  const torch::Tensor out = model->forward(series);
  EXPECT_TRUE(out.isfinite().all().item<bool>());
  EXPECT_TRUE(torch::autograd::grad({out.sum()}, {series})[0].isfinite().all().item<bool>());
}

TEST(AutoformerModel, RejectsOptionsOutOfRange) {
  EXPECT_EQ(refusal(small_autoformer().MovingAvg_window((int64_t{1} << 62) + 1)),
            "Autoformer: expected MovingAvg_window of at most 2147483647, got 4611686018427387905");
  EXPECT_EQ(refusal(small_autoformer().MovingAvg_window(4)),
            "Autoformer: expected an odd MovingAvg_window, which has a middle, got 4");
  EXPECT_EQ(refusal(small_autoformer().decoder_input_size_multiplier(1.0)),
            "Autoformer: expected decoder_input_size_multiplier to leave the decoder between 1 and "
            "input_size - 1 = 23 steps of the past, got 24 with 1");
  EXPECT_EQ(refusal(small_autoformer().activation("tanh")),
            "Autoformer: expected activation \"relu\" or \"gelu\", got \"tanh\"");
  EXPECT_EQ(refusal(small_autoformer().factor(9)),
            "Autoformer: expected a factor that makes int(factor * ln(length)) at least 1 and at "
            "most 24 delays of a sequence of 24 steps, got factor 9, which makes 28");
  // 22 delays of the encoder's 24 steps, but the decoder has half of them and the horizon.
  EXPECT_EQ(refusal(small_autoformer().factor(7)),
            "Autoformer: expected a factor that makes int(factor * ln(length)) at least 1 and at "
            "most 16 delays of a sequence of 17 steps, got factor 7, which makes 19");
  EXPECT_EQ(refusal(small_autoformer().attention("exact")),
            "Autoformer: expected attention \"native\", \"standard\" or \"flash\", got \"exact\"");
  EXPECT_EQ(refusal(small_autoformer().attention("standard").use_flash_attention(true)),
            "Autoformer: expected one choice of attention, got \"standard\" and "
            "use_flash_attention; set one of them");
}

TEST(AutoformerModel, RejectsWindowsOfTheWrongShape) {
  Autoformer model(small_autoformer());
  EXPECT_EQ(refusal(model, {.insample_y = torch::zeros({2, 23, 1})}),
            "Autoformer: expected insample_y [batch, 24, 1], got [2, 23, 1]; the model is "
            "univariate, so give the columns of a table as windows of their own");
  EXPECT_NE(refusal(model, {.insample_y = torch::zeros({2, 24, 1}),
                            .hist_exog = torch::zeros({2, 24, 3})}),
            "no exception");
  Autoformer exogenous(small_autoformer().futr_exog_list({"a", "b"}));
  EXPECT_NE(refusal(exogenous, {.insample_y = torch::zeros({2, 24, 1})}), "no exception");
}

TEST(AutoformerModel, ReplacesItsMechanismByExactAttention) {
  const auto outputs = [](const std::string& attention) {
    torch::manual_seed(1);
    Autoformer model(small_autoformer().attention(attention).encoder_layers(3).decoder_layers(2));
    model->to(torch::kDouble);
    const torch::Tensor input = torch::randn({3, 24, 1}, torch::kDouble).requires_grad_();
    const torch::Tensor output = model->forward(input);
    output.square().sum().backward();
    std::vector<torch::Tensor> all = {output.detach(), input.grad()};
    for (const torch::Tensor& parameter : model->parameters()) all.push_back(parameter.grad());
    return all;
  };
  const auto native = outputs("native"), standard = outputs("standard"), flash = outputs("flash");
  ASSERT_EQ(standard.size(), native.size());  // the same parameters
  ASSERT_EQ(standard.size(), flash.size());
  for (size_t i = 0; i < flash.size(); ++i) {
    EXPECT_LT(max_difference(flash[i], standard[i]), kGuideFloat64) << i;
  }
  EXPECT_GT(max_difference(native[0], standard[0]), 1e-3);
}

TEST(AutoformerModel, TreatsUseFlashAttentionLikeAttentionFlash) {
  const auto output = [](const AutoformerOptions& options) {
    torch::manual_seed(1);
    Autoformer model(options);
    return model->forward(torch::randn({3, 24, 1}));
  };
  EXPECT_TRUE(torch::equal(output(small_autoformer().attention("flash")),
                           output(small_autoformer().use_flash_attention(true))));
}

TEST(AutoformerModel, ChoosesDelaysForTheBatchInTraining) {
  torch::manual_seed(1);
  Autoformer model(small_autoformer());
  const torch::Tensor input = torch::randn({4, 24, 1});
  EXPECT_GT(
      max_difference(model->forward(input).slice(0, 0, 1), model->forward(input.slice(0, 0, 1))),
      1e-4);
  model->eval();
  EXPECT_LT(
      max_difference(model->forward(input).slice(0, 0, 1), model->forward(input.slice(0, 0, 1))),
      kModelFloat32);
}

TEST(AutoformerModel, DropsElementsOfTokensOnlyInTraining) {
  torch::manual_seed(1);
  Autoformer model(small_autoformer().dropout(0.5));
  const torch::Tensor input = torch::randn({3, 24, 1});
  model->eval();
  EXPECT_TRUE(torch::equal(model->forward(input), model->forward(input)));
  for (const char* embedding : {"enc_embedding", "dec_embedding"}) {
    model->eval();  // no dropout after the embedding
    model->named_children()[embedding]->train();
    EXPECT_FALSE(torch::equal(model->forward(input), model->forward(input))) << embedding;
  }
}

TEST(AutoformerModel, HidesTheSeriesWithExcludeInsampleY) {
  Autoformer model(small_autoformer().exclude_insample_y(true));
  EXPECT_TRUE(torch::equal(model->forward(torch::randn({2, 24, 1})),
                           model->forward(torch::randn({2, 24, 1}))));
}

TEST(AutoformerModel, TrainsAlikeWithGradientCheckpointing) {
  const auto gradients = [](bool recomputed) {
    torch::manual_seed(1);
    Autoformer model(small_autoformer().dropout(0.3).gradient_checkpointing(recomputed));
    model->forward(torch::randn({4, 24, 1})).square().sum().backward();
    std::vector<torch::Tensor> all;
    for (const torch::Tensor& parameter : model->parameters()) all.push_back(parameter.grad());
    return all;
  };
  const auto kept = gradients(false), recomputed = gradients(true);
  for (size_t i = 0; i < kept.size(); ++i) EXPECT_TRUE(torch::equal(kept[i], recomputed[i])) << i;
}

TEST(AutoformerModel, ClonesWithoutSharingParameters) {
  Autoformer model(small_autoformer());
  model->to(torch::kDouble);
  model->eval();
  const torch::Tensor input = torch::randn({2, 24, 1}, torch::kDouble);
  const torch::Tensor output = model->forward(input);
  auto copy = std::dynamic_pointer_cast<models::AutoformerImpl>(model->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_TRUE(torch::equal(copy->forward(input), output));
  {
    torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : copy->parameters()) parameter.add_(1.0);
  }
  EXPECT_FALSE(torch::equal(copy->forward(input), output));
  EXPECT_TRUE(torch::equal(model->forward(input), output));
}

/// neuralforecast's moving average, step by step.
torch::Tensor repeated_average(const torch::Tensor& series, int64_t window) {
  const int64_t times = series.size(1), reach = window / 2;
  std::vector<torch::Tensor> rows;
  for (int64_t t = 0; t < times; ++t) {
    torch::Tensor sum = torch::zeros_like(series.select(1, 0));
    for (int64_t i = t - reach; i <= t + reach; ++i) {
      sum = sum + series.select(1, std::clamp<int64_t>(i, 0, times - 1));
    }
    rows.push_back(sum / static_cast<double>(window));
  }
  return torch::stack(rows, 1);
}

TEST(SeriesDecomposition, EqualsTheMovingAverageAndItsGradient) {
  for (const int64_t times : {1, 3, 6, 40}) {
    for (const int64_t window : {1, 5, 13}) {
      for (const int64_t channels : {1, 70}) {
        SCOPED_TRACE(testing::Message() << times << " " << window << " " << channels);
        const auto random = [&] { return torch::randn({2, times, channels}, torch::kDouble); };
        const torch::Tensor weight = random(), other = random();
        torch::Tensor x = random().requires_grad_(), before = random().requires_grad_();
        const auto [seasonal, trend] = models::decompose_series(x, window, before);
        (seasonal * weight + trend * other).sum().backward();
        torch::Tensor y = x.detach().clone().requires_grad_();
        const torch::Tensor average = repeated_average(y, window);
        ((y - average) * weight + (average + before.detach()) * other).sum().backward();
        EXPECT_LT(max_difference(seasonal, y - average), kOperatorFloat64);
        EXPECT_LT(max_difference(trend, average + before), kOperatorFloat64);
        EXPECT_LT(max_difference(x.grad(), y.grad()), kOperatorFloat64);
        EXPECT_TRUE(torch::equal(before.grad(), other));
        EXPECT_TRUE(torch::equal(models::seasonal_part(x, window), seasonal));
      }
    }
  }
}

TEST(SeriesDecomposition, OfASumEqualsItsPartsWithGradients) {
  constexpr double kDropout = 0.3;
  for (const int64_t channels : {6, 7}) {  // series of a multiple of 64 elements, and others
    for (const bool has_before : {false, true}) {
      std::vector<torch::Tensor> results[2];
      for (const bool fused : {false, true}) {
        torch::manual_seed(1);
        const auto random = [&] { return torch::randn({3, 32, channels}, torch::kDouble); };
        const torch::Tensor weight = random(), other = random();
        std::vector<torch::Tensor> leaves = {random().requires_grad_(), random().requires_grad_()};
        const torch::Tensor before = has_before ? random().requires_grad_() : torch::Tensor();
        if (has_before) leaves.push_back(before);
        const torch::Tensor &x = leaves[0], &residual = leaves[1];
        torch::manual_seed(2);
        const auto [seasonal, trend] =
            fused ? models::decompose_series_sum(x, residual, kDropout, true, 5, before)
                  : models::decompose_series(dropout_add(x, residual, kDropout, true), 5, before);
        torch::manual_seed(2);
        const torch::Tensor alone =
            fused ? models::seasonal_part_of_sum(x, residual, kDropout, true, 5)
                  : models::seasonal_part(dropout_add(x, residual, kDropout, true), 5);
        results[fused] = torch::autograd::grad(
            {(seasonal * weight + trend * other).sum() + (alone * other).sum()}, leaves);
        for (const torch::Tensor& part : {seasonal, trend, alone}) {
          results[fused].push_back(part.detach());
        }
      }
      for (size_t i = 0; i < results[0].size(); ++i) {
        EXPECT_LT(max_difference(results[1][i], results[0][i]), kOperatorFloat64)
            << channels << " channels, result " << i;
      }
    }
  }
}

TEST(SeriesDecomposition, KeepsFloat32AccuracyInLongSeries) {
  const torch::Tensor series = torch::randn({1, 3000, 2}) + 1000.0;
  const torch::Tensor exact = models::seasonal_part(series.to(torch::kDouble), 25);
  EXPECT_LT(max_difference(models::seasonal_part(series, 25), exact), kModelFloat32);
}

TEST(AutoCorrelation, EqualsFourierTransformsOfEveryChannelWithGradients) {
  for (const int64_t times : {10, 11}) {
    for (const bool shared : {false, true}) {
      SCOPED_TRACE(testing::Message() << times << (shared ? " shared" : ""));
      const auto random = [&] {
        return torch::randn({3, times, 4}, torch::kDouble).requires_grad_();
      };
      torch::Tensor query = random(), key = random();
      const torch::Tensor weight = torch::randn({3, 3}, torch::kDouble);
      const auto chosen = models::choose_delays(query, key, 0.25, 3, shared);
      (chosen.correlations * weight).sum().backward();
      torch::Tensor q = query.detach().clone().requires_grad_();
      torch::Tensor k = key.detach().clone().requires_grad_();
      const torch::Tensor all =
          at::fft_irfft(at::fft_rfft(q, {}, 1) * at::fft_rfft(k, {}, 1).conj(), {}, 1).mean(2);
      const torch::Tensor delays = std::get<1>((shared ? all.mean(0, true) : all).topk(3, 1));
      const torch::Tensor expected = all.gather(1, delays.expand({3, 3}));
      (expected * weight).sum().backward();
      EXPECT_TRUE(torch::equal(chosen.delays, delays));
      EXPECT_LT(max_difference(chosen.correlations, expected), kOperatorFloat64);
      EXPECT_LT(max_difference(query.grad(), q.grad()), kOperatorFloat64);
      EXPECT_LT(max_difference(key.grad(), k.grad()), kOperatorFloat64);
    }
  }
}

}  // namespace
}  // namespace flash::tests
