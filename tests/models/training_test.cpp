// The training loop, its forecasts and its progress line.

#include <flash_attention/models/safetensors.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <sstream>

#include "models/fixture.h"
#include "models/temporary_file.h"
#include "tolerances.h"
#include "train/evaluation.h"
#include "train/forecaster.h"
#include "train/progress.h"
#include "train/trainer.h"

namespace flash::tests {
namespace {

using models::PatchTST;
using models::PatchTSTOptions;
using models::Progress;
using models::Settings;
using models::TrainingResult;
using models::WindowDataset;
using testing::HasSubstr;

/// Two noisy waves of 120 rows.
torch::Tensor waves() {
  torch::manual_seed(11);
  const torch::Tensor time = torch::arange(120.0);
  return torch::stack({torch::sin(time * 0.5), torch::cos(time * 0.3)}) +
         0.1 * torch::randn({2, 120});
}

Settings quick_settings() {
  Settings settings;
  settings.epochs = 2;
  settings.batch_size = 16;
  settings.seed = 5;
  return settings;
}

TrainingResult train_tiny(PatchTST& model, const Settings& settings) {
  const torch::Tensor values = waves();
  const WindowDataset train(values, {0, 80}, true, 24, 4);
  const WindowDataset validation(values, {80, 100}, false, 24, 4);
  std::ostringstream ignored;
  Progress progress(ignored, false, settings.epochs,
                    models::steps_per_epoch(train, settings.batch_size));
  return models::train(model, train, validation, settings, progress);
}

TrainingResult train_fresh(const PatchTSTOptions& options) {
  const Settings settings = quick_settings();
  torch::manual_seed(settings.seed);
  PatchTST model(options);
  return train_tiny(model, settings);
}

TEST(Training, StepChangesEveryTrainedParameterAndNoOther) {
  for (const bool flash : {false, true}) {
    for (const bool residual : {false, true}) {
      torch::manual_seed(2);
      PatchTST model(
          tiny_options().revin_affine(true).res_attention(residual).use_flash_attention(flash));
      std::map<std::string, torch::Tensor> before;
      for (const auto& p : model->named_parameters()) before[p.key()] = p->detach().clone();
      torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));
      torch::l1_loss(model->forward(torch::randn({6, 24, 1})).squeeze(2), torch::randn({6, 4}))
          .backward();
      optimizer.step();
      for (const auto& p : model->named_parameters()) {
        EXPECT_EQ(!torch::equal(*p, before[p.key()]), p->requires_grad()) << p.key();
      }
    }
  }
}

TEST(Training, GivesTheSameLossesWithFlashAndStandardAttention) {
  for (const bool residual : {true, false}) {
    for (const double attention_dropout : {0.0, 0.3}) {  // both draw the same mask
      const PatchTSTOptions options =
          tiny_options().dropout(0.2).attn_dropout(attention_dropout).res_attention(residual);
      const TrainingResult standard = train_fresh(options);
      const TrainingResult flash = train_fresh(PatchTSTOptions(options).use_flash_attention(true));
      ASSERT_EQ(standard.epochs.size(), 2u);
      for (size_t i = 0; i < standard.epochs.size(); ++i) {
        EXPECT_NEAR(flash.epochs[i].train_loss, standard.epochs[i].train_loss,
                    kTrainingLossFloat32);
        EXPECT_NEAR(flash.epochs[i].validation_loss, standard.epochs[i].validation_loss,
                    kTrainingLossFloat32);
      }
    }
  }
}

TEST(Training, RepeatsItselfFromTheSameSeed) {
  const PatchTSTOptions options = tiny_options().dropout(0.2).use_flash_attention(true);
  const TrainingResult first = train_fresh(options);
  const TrainingResult second = train_fresh(options);
  EXPECT_EQ(first.epochs[1].train_loss, second.epochs[1].train_loss);
  EXPECT_EQ(first.epochs[1].validation_loss, second.epochs[1].validation_loss);
}

TEST(Training, LearnsAndKeepsTheBestEpoch) {
  Settings settings = quick_settings();
  settings.epochs = 12;
  settings.learning_rate = 0.02;  // large enough for later epochs to get worse now and then
  torch::manual_seed(settings.seed);
  PatchTST model(tiny_options().use_flash_attention(true));
  const TrainingResult result = train_tiny(model, settings);
  EXPECT_LT(result.epochs.back().train_loss, 0.7 * result.epochs.front().train_loss);
  double least = std::numeric_limits<double>::infinity();
  for (const auto& epoch : result.epochs) least = std::min(least, epoch.validation_loss);
  const double kept = result.epochs[static_cast<size_t>(result.best_epoch) - 1].validation_loss;
  EXPECT_EQ(kept, least);
  EXPECT_EQ(models::mean_absolute_error(model, WindowDataset(waves(), {80, 100}, false, 24, 4)),
            least);
}

TEST(Training, StopsWhenTheLossIsNotFinite) {
  Settings settings = quick_settings();
  settings.learning_rate = 1e30;
  PatchTST model(tiny_options());
  EXPECT_THAT([&] { train_tiny(model, settings); },
              testing::ThrowsMessage<c10::ValueError>(HasSubstr("lower the learning rate")));
}

TEST(NaiveForecast, RepeatsTheLastValueOrSeason) {
  const torch::Tensor past = torch::tensor({{1.0f, 2.0f, 3.0f, 4.0f}}).unsqueeze(2);
  EXPECT_TRUE(torch::equal(models::naive_forecast(past, 2), torch::tensor({{4.0f, 4.0f}})));
  EXPECT_TRUE(torch::equal(models::seasonal_naive_forecast(past, 5, 3),
                           torch::tensor({{2.0f, 3.0f, 4.0f, 2.0f, 3.0f}})));
  EXPECT_THAT([&] { models::seasonal_naive_forecast(past, 5, 6); },
              testing::ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected a season between 1 and the input size 4, got 6")));
}

TEST(Evaluation, MeasuresOnBothScales) {
  // Column a is 0, 1, 2, ...: naive is off by 1 ... horizon; column b is constant: naive is right.
  const torch::Tensor raw = torch::stack({torch::arange(40.0), torch::full({40}, 5.0)});
  const models::Scaler scaler{.mean = torch::tensor({3.0, 5.0}, torch::kDouble),
                              .deviation = torch::tensor({2.0, 1.0}, torch::kDouble)};
  const torch::Tensor scaled = scaler.transform(raw).to(torch::kFloat);
  const WindowDataset windows(scaled, {30, 40}, false, 24, 4);
  const models::CsvTable table{.columns = {"a", "b"}, .labels = {}, .values = raw};
  PatchTST model(tiny_options());
  const auto result = models::evaluate(model, windows, table, scaler, 7);
  EXPECT_EQ(result.windows, 2 * 7);
  EXPECT_NEAR(result.columns[0].naive, 2.5, 1e-5);  // float32 windows of values up to 20
  EXPECT_NEAR(result.columns[0].seasonal_naive, 7.0, 1e-5);
  EXPECT_EQ(result.columns[1].naive, 0.0);
  EXPECT_NEAR(result.naive.mae, 2.5 / 2.0 / 2.0, 1e-5);
  EXPECT_NEAR(result.naive.mse, (1.0 + 4.0 + 9.0 + 16.0) / 4.0 / 4.0 / 2.0, 1e-5);
  EXPECT_NEAR(result.model.mae, (result.columns[0].model / 2.0 + result.columns[1].model) / 2.0,
              1e-5);
}

TEST(Forecaster, ComesBackWithScalerAndColumns) {
  models::Forecaster forecaster{
      .model = PatchTST(tiny_options()),
      .scaler = {.mean = torch::tensor({0.1, 1e300}, torch::kDouble),
                 .deviation = torch::tensor({1.0 / 3.0, 2.0}, torch::kDouble)},
      .data = {.columns = {"a", "b, \"c\""},
               .train_fraction = 0.6,
               .validation_fraction = 0.15,
               .season = 12}};
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), forecaster);
  const auto loaded = models::load_forecaster(file.path(), {});
  EXPECT_EQ(loaded.data.columns, forecaster.data.columns);
  EXPECT_EQ(loaded.data.train_fraction, 0.6);
  EXPECT_EQ(loaded.data.validation_fraction, 0.15);
  EXPECT_EQ(loaded.data.season, 12);
  EXPECT_TRUE(torch::equal(loaded.scaler.mean, forecaster.scaler.mean));
  EXPECT_TRUE(torch::equal(loaded.scaler.deviation, forecaster.scaler.deviation));
}

TEST(Forecaster, RefusesAFileOfSomethingElse) {
  const std::string path = std::string(FLASH_FIXTURES) + "/patchtst_train_bn.safetensors";
  EXPECT_THAT([&] { models::load_forecaster(path, {}); },
              testing::ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected a model written by flash_train")));
}

TEST(ProgressLine, IsALinePerEpochInAFile) {
  std::ostringstream text;
  Progress progress(text, /*in_place=*/false, 2, 10);
  progress.step(1, 1, 0.5);
  EXPECT_EQ(text.str(), "");
  progress.epoch(1, 0.5, 0.25, true);
  EXPECT_THAT(text.str(),
              testing::MatchesRegex(
                  "epoch 1/2  step 10  train loss 0.5000  validation loss 0.2500 \\(best\\)  "
                  "[0-9]+ s, [0-9]+ s left\n"));
}

TEST(ProgressLine, IsRewrittenInPlaceOnATerminal) {
  std::ostringstream text;
  Progress progress(text, /*in_place=*/true, 2, 10);
  progress.step(1, 3, 0.5);
  progress.step(1, 4, 0.4);  // too soon after the one before to be shown
  EXPECT_THAT(text.str(),
              testing::MatchesRegex("\repoch 1/2  step 3/10  loss 0.5000  [0-9]+ s left\x1b\\[K"));
}

TEST(ProgressLine, WritesDurationsForPeople) {
  EXPECT_EQ(models::format_duration(0.4), "0 s");
  EXPECT_EQ(models::format_duration(185.0), "3:05 min");
  EXPECT_EQ(models::format_duration(7267.0), "2:01:07 h");
}

}  // namespace
}  // namespace flash::tests
