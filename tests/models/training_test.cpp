// The training loop, its interruption, its forecasts and its progress line.

#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/safetensors.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "models/fixture.h"
#include "models/temporary_file.h"
#include "tolerances.h"
#include "train/evaluation.h"
#include "train/forecaster.h"
#include "train/prepared_data.h"
#include "train/progress.h"
#include "train/run_file.h"
#include "train/trainer.h"

namespace flash::tests {
namespace {

using models::Adam;
using models::Forecaster;
using models::PatchTST;
using models::PatchTSTOptions;
using models::PreparedData;
using models::Progress;
using models::Series;
using models::Settings;
using models::TimeSplit;
using models::Trainer;
using models::TrainingResult;
using models::WindowDataset;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// Two noisy waves of 120 rows.
std::vector<Series> waves() {
  torch::manual_seed(11);
  const torch::Tensor time = torch::arange(120.0);
  const torch::Tensor values =
      torch::stack({torch::sin(time * 0.5), torch::cos(time * 0.3)}) + 0.1 * torch::randn({2, 120});
  std::vector<Series> panel;
  for (int64_t i = 0; i < 2; ++i) {
    panel.push_back({.name = i == 0 ? "a" : "b",
                     .labels = std::vector<std::string>(120, "day"),
                     .known = 120,
                     .values = values.slice(0, i, i + 1).to(torch::kDouble),
                     .stat = torch::zeros({0}, torch::kDouble)});
  }
  return panel;
}

/// A small network of any class on those waves.
Settings quick_settings(const std::string& model_class = "PatchTST") {
  Settings settings;
  settings.data.columns.targets = {"a", "b"};
  settings.model = {.model_class = model_class,
                    .options = R"({"hidden_size": 8, "dropout": 0.2})",
                    .input_size = 24,
                    .horizon = 4,
                    .attention = models::default_attention(model_class)};
  if (model_class == "PatchTST") {
    settings.model.options =
        R"({"hidden_size": 8, "n_heads": 2, "linear_hidden_size": 12, "encoder_layers": 2,
            "patch_len": 6, "stride": 3, "dropout": 0.2})";
  }
  if (model_class == "iTransformer") {
    settings.model.options = R"({"hidden_size": 8, "n_heads": 2, "d_ff": 12})";
  }
  settings.training.epochs = 2;
  settings.training.batch_size = 16;
  settings.training.seed = 5;
  return settings;
}

bool never() { return false; }

/// A forecaster with its data and its trainer, as flash_train has them.
class Session {
 public:
  explicit Session(const Settings& settings_)
      : settings(settings_),
        forecaster(make(settings_)),
        data(models::prepare_training(waves(), forecaster)),
        train_windows(models::windows_of(data, data.part(&TimeSplit::train), forecaster)),
        validation_windows(models::windows_of(data, data.part(&TimeSplit::validation), forecaster)),
        trainer(forecaster, train_windows, validation_windows, settings.training) {
    torch::manual_seed(settings.training.seed);  // after waves() has drawn
  }

  bool run(const std::function<bool()>& interrupted = never) {
    std::ostringstream ignored;
    Progress progress(ignored, false, settings.training.epochs, trainer.steps_per_epoch());
    return trainer.run(progress, interrupted, [] {});
  }
  const TrainingResult& result() const { return trainer.state.result; }
  void save(const std::string& path) const {
    models::save_run(path, settings, forecaster, trainer, models::fingerprint(data));
  }
  void restore(const std::string& path) {
    models::restore_run(models::read_run(path), forecaster, trainer, models::fingerprint(data));
  }

  Settings settings;
  Forecaster forecaster;
  PreparedData data;
  WindowDataset train_windows, validation_windows;
  Trainer trainer;

 private:
  static Forecaster make(const Settings& settings) {
    torch::manual_seed(settings.training.seed);
    return models::make_forecaster(settings.data, settings.model, settings.loss, 2);
  }
};

TrainingResult train_fresh(const Settings& settings) {
  Session session(settings);
  EXPECT_TRUE(session.run());
  return session.result();
}

TEST(Training, StepChangesEveryTrainedParameterAndNoOther) {
  for (const bool flash : {false, true}) {
    for (const bool residual : {false, true}) {
      torch::manual_seed(2);
      PatchTST model(
          tiny_options().revin_affine(true).res_attention(residual).use_flash_attention(flash));
      std::map<std::string, torch::Tensor> before;
      for (const auto& p : model->named_parameters()) before[p.key()] = p->detach().clone();
      std::vector<std::pair<std::string, torch::Tensor>> trained;
      for (const auto& p : model->named_parameters()) {
        if (p->requires_grad()) trained.emplace_back(p.key(), *p);
      }
      Adam optimizer(trained);
      torch::l1_loss(model->forward(torch::randn({6, 24, 1})).squeeze(2), torch::randn({6, 4}))
          .backward();
      optimizer.step(1e-3);
      for (const auto& p : model->named_parameters()) {
        EXPECT_EQ(!torch::equal(*p, before[p.key()]), p->requires_grad()) << p.key();
      }
    }
  }
}

TEST(AdamStep, IsThatOfLibtorch) {
  torch::manual_seed(1);
  const torch::Tensor start = torch::randn({7, 3});
  torch::Tensor ours = start.clone().requires_grad_(), theirs = start.clone().requires_grad_();
  Adam adam({{"weight", ours}});
  torch::optim::Adam reference({theirs}, torch::optim::AdamOptions(0.01));
  for (int i = 0; i < 5; ++i) {
    const torch::Tensor gradient = torch::randn({7, 3});
    ours.mutable_grad() = gradient;
    theirs.mutable_grad() = gradient.clone();
    adam.step(0.01);
    reference.step();
  }
  EXPECT_LT(max_difference(ours, theirs), 1e-6);  // rounding of five steps of 0.01
}

TEST(AdamStep, TakesComplexWeightsAsPairsOfNumbers) {
  torch::manual_seed(1);
  const torch::Tensor start = torch::randn({4, 2});
  torch::Tensor pairs = start.clone().requires_grad_();
  torch::Tensor complex = torch::view_as_complex(start.clone()).requires_grad_();
  Adam of_pairs({{"weight", pairs}}), of_complex({{"weight", complex}});
  for (int i = 0; i < 3; ++i) {
    const torch::Tensor gradient = torch::randn({4, 2});
    pairs.mutable_grad() = gradient;
    complex.mutable_grad() = torch::view_as_complex(gradient.clone());
    of_pairs.step(0.01);
    of_complex.step(0.01);
  }
  EXPECT_TRUE(torch::equal(torch::view_as_real(complex.detach()), pairs.detach()));
}

TEST(Training, GivesTheSameLossesWithFlashAndStandardAttention) {
  for (const char* model_class : {"PatchTST", "TFT", "iTransformer"}) {
    Settings settings = quick_settings(model_class);
    const TrainingResult flash = train_fresh(settings);
    settings.model.attention = "standard";
    const TrainingResult standard = train_fresh(settings);
    ASSERT_EQ(standard.epochs.size(), 2u);
    for (size_t i = 0; i < standard.epochs.size(); ++i) {
      EXPECT_NEAR(flash.epochs[i].train_loss, standard.epochs[i].train_loss, kTrainingLossFloat32)
          << model_class;
      EXPECT_NEAR(flash.epochs[i].validation_loss, standard.epochs[i].validation_loss,
                  kTrainingLossFloat32);
    }
  }
}

TEST(Training, RepeatsItselfFromTheSameSeed) {
  const TrainingResult first = train_fresh(quick_settings());
  const TrainingResult second = train_fresh(quick_settings());
  EXPECT_EQ(first.epochs[1].train_loss, second.epochs[1].train_loss);
  EXPECT_EQ(first.epochs[1].validation_loss, second.epochs[1].validation_loss);
}

TEST(Training, LearnsAndKeepsTheBestEpoch) {
  Settings settings = quick_settings();
  settings.training.epochs = 12;
  settings.training.learning_rate = 0.02;  // large enough for later epochs to get worse
  Session session(settings);
  ASSERT_TRUE(session.run());
  const TrainingResult& result = session.result();
  EXPECT_LT(result.epochs.back().train_loss, 0.7 * result.epochs.front().train_loss);
  double least = std::numeric_limits<double>::infinity();
  for (const auto& epoch : result.epochs) least = std::min(least, epoch.validation_loss);
  const auto& kept = result.epochs[static_cast<size_t>(result.best_epoch) - 1];
  EXPECT_EQ(kept.validation_loss, least);
  const auto again = models::validate(session.forecaster, session.validation_windows, 16);
  EXPECT_EQ(again->loss, least);
  EXPECT_NEAR(kept.validation_mae, least, 1e-6);  // the loss is MAE, summed in another order
}

TEST(Training, LowersTheRateAfterTheEpochsAsked) {
  Settings settings = quick_settings();
  settings.training.epochs = 4;
  settings.training.learning_rate = 0.25;
  settings.training.decay = 0.5;
  settings.training.decay_after = 2;
  std::vector<double> rates;
  for (const auto& epoch : train_fresh(settings).epochs) rates.push_back(epoch.learning_rate);
  EXPECT_EQ(rates, (std::vector<double>{0.25, 0.25, 0.125, 0.0625}));
}

TEST(Training, StopsEarlyWithoutABetterEpoch) {
  Settings settings = quick_settings();
  settings.training.epochs = 50;
  settings.training.patience = 2;
  settings.training.learning_rate = 0.5;  // gets nowhere
  const TrainingResult result = train_fresh(settings);
  EXPECT_LT(result.epochs.size(), 50u);
  EXPECT_EQ(static_cast<int64_t>(result.epochs.size()), result.best_epoch + 2);
}

TEST(Training, StopsWhenTheLossIsNotFinite) {
  Settings settings = quick_settings();
  settings.training.learning_rate = 1e30;
  EXPECT_THAT([&] { train_fresh(settings); },
              ThrowsMessage<c10::ValueError>(HasSubstr("lower the learning rate")));
}

/// Trains without a stop, and with one after `steps` steps through a file and a new session.
class Interruption : public testing::TestWithParam<const char*> {};

TEST_P(Interruption, LeavesNoTrace) {
  Settings settings = quick_settings(GetParam());
  settings.training.epochs = 3;
  if (std::string(GetParam()) == "TFT") settings.loss.name = "MQLoss";
  Session whole(settings);
  ASSERT_TRUE(whole.run());
  const int64_t per_epoch = whole.trainer.steps_per_epoch();
  // Within the first epoch, between two, and within the validation of the second.
  for (const int64_t asked : {int64_t{2}, per_epoch + 1, 2 * per_epoch + 4}) {
    const TemporaryFile file(".checkpoint");
    Session first(settings);
    int64_t count = 0;
    ASSERT_FALSE(first.run([&] { return count++ == asked; }));
    first.save(file.path());
    Session second(settings);
    torch::rand({3});  // a generator elsewhere
    second.restore(file.path());
    ASSERT_TRUE(second.run());
    for (const auto& [name, tensor] : whole.forecaster.state()) {
      EXPECT_TRUE(torch::equal(second.forecaster.state().at(name), tensor)) << name;
    }
    ASSERT_EQ(second.result().epochs.size(), whole.result().epochs.size());
    for (size_t i = 0; i < whole.result().epochs.size(); ++i) {
      EXPECT_EQ(second.result().epochs[i].train_loss, whole.result().epochs[i].train_loss);
      EXPECT_EQ(second.result().epochs[i].validation_loss, whole.result().epochs[i].validation_loss);
    }
    EXPECT_EQ(second.result().best_epoch, whole.result().best_epoch);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Interruption,
                         testing::Values("TFT", "Informer", "Autoformer", "FEDformer", "PatchTST",
                                         "iTransformer"),
                         [](const auto& info) { return std::string(info.param); });

/// A session interrupted after some steps, and its file.
struct Interrupted {
  explicit Interrupted(int64_t steps) : session(quick_settings()) {
    int64_t count = 0;
    EXPECT_FALSE(session.run([&] { return count++ == steps; }));
    session.save(file.path());
  }
  Session session;
  TemporaryFile file{".checkpoint"};
};

/// Weights before and after a restoration that is refused; what it is refused with.
std::string refusal(const std::string& path, const Settings& settings = quick_settings()) {
  Session session(settings);
  std::map<std::string, torch::Tensor> before;
  for (const auto& [name, tensor] : session.forecaster.state()) before[name] = tensor.clone();
  std::string message = "not refused";
  try {
    session.restore(path);
  } catch (const c10::ValueError& error) {
    message = error.what_without_backtrace();
  }
  for (const auto& [name, tensor] : session.forecaster.state()) {
    EXPECT_TRUE(torch::equal(tensor, before[name])) << name << " was half loaded";
  }
  EXPECT_EQ(session.trainer.state.step, 0);
  return message;
}

TEST(RunFile, IsRefusedWhenItIsCutOff) {
  const Interrupted run(3);
  std::stringstream contents;
  contents << std::ifstream(run.file.path(), std::ios::binary).rdbuf();
  const std::string whole = contents.str();
  const TemporaryFile cut(".checkpoint", whole.substr(0, whole.size() - 10));
  EXPECT_THAT(refusal(cut.path()), HasSubstr("cut off"));
}

TEST(RunFile, IsRefusedWithTensorsOfAnotherTraining) {
  const Interrupted run(3);
  Settings wider = quick_settings();
  wider.model.options = R"({"hidden_size": 10, "n_heads": 2, "linear_hidden_size": 12,
                            "encoder_layers": 2, "patch_len": 6, "stride": 3})";
  EXPECT_THAT(refusal(run.file.path(), wider),
              testing::AllOf(HasSubstr("adam/exp_avg/"), HasSubstr("expected Float [10"),
                             HasSubstr("got Float [8")));
  auto file = models::read_safetensors(run.file.path());
  file.tensors.erase("generator/order");
  file.tensors["model/extra"] = torch::zeros({2});
  const TemporaryFile other(".checkpoint");
  models::write_safetensors(other.path(), file.tensors, file.metadata);
  EXPECT_THAT(refusal(other.path()), testing::AllOf(HasSubstr("missing: generator/order"),
                                                    HasSubstr("unexpected: model/extra")));
}

TEST(RunFile, IsRefusedWhenTheDataHasChanged) {
  const Interrupted run(3);
  EXPECT_THAT(
      [&] {
        models::restore_run(models::read_run(run.file.path()), run.session.forecaster,
                            const_cast<Trainer&>(run.session.trainer), "another");
      },
      ThrowsMessage<c10::ValueError>(HasSubstr("has other numbers now")));
}

TEST(RunFile, IsNoModel) {
  EXPECT_THAT([] { models::read_run(fixture_path("patchtst_train_bn")); },
              ThrowsMessage<c10::ValueError>(HasSubstr("expected the checkpoint of a training")));
}

TEST(NaiveForecast, RepeatsTheLastValueOrSeason) {
  const torch::Tensor past = torch::tensor({{1.0f, 2.0f, 3.0f, 4.0f}}).unsqueeze(2);
  EXPECT_TRUE(
      torch::equal(models::naive_forecast(past, 2).squeeze(2), torch::tensor({{4.0f, 4.0f}})));
  EXPECT_TRUE(torch::equal(models::seasonal_naive_forecast(past, 5, 3).squeeze(2),
                           torch::tensor({{2.0f, 3.0f, 4.0f, 2.0f, 3.0f}})));
  EXPECT_THAT([&] { models::seasonal_naive_forecast(past, 5, 6); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected a season between 1 and the input size 4, got 6")));
}

TEST(Evaluation, MeasuresOnBothScales) {
  // Series a is 0, 1, 2, ...: naive is off by 1 ... horizon; series b is constant: naive is right.
  Settings settings = quick_settings();
  settings.data.split = {.train_rows = 28, .validation_rows = 4, .test_rows = 10};
  Forecaster forecaster =
      models::make_forecaster(settings.data, settings.model, settings.loss, 2);
  std::vector<Series> panel = waves();
  panel[0].values = torch::arange(42.0, torch::kDouble).unsqueeze(0);
  panel[1].values = torch::full({1, 42}, 5.0, torch::kDouble);
  const PreparedData data = models::prepare_training(panel, forecaster);
  const auto windows = models::windows_of(data, data.part(&TimeSplit::test), forecaster);
  const auto result = models::evaluate(forecaster, windows, data.series, 3);
  EXPECT_EQ(result.windows, 2 * 7);
  const double unit = forecaster.scalers.at("a").deviation.item<double>();
  EXPECT_NEAR(result.series[0].naive, 2.5, 1e-5);  // float32 windows of values up to 4
  EXPECT_NEAR(result.series[0].seasonal_naive, 7.0, 1e-5);
  EXPECT_EQ(result.series[1].naive, 0.0);
  EXPECT_NEAR(result.naive.mae, 2.5 / unit / 2.0, 1e-5);
  EXPECT_NEAR(result.naive.mse, (1.0 + 4.0 + 9.0 + 16.0) / 4.0 / unit / unit / 2.0, 1e-5);
  EXPECT_NEAR(result.model.mae, (result.series[0].model / unit + result.series[1].model) / 2.0,
              1e-5);
}

TEST(ForecastColumns, AreFoundByTheirNames) {
  const models::ForecastColumns columns({"-median", "-lo-90", "-lo-80", "-hi-80", "-hi-90"});
  EXPECT_EQ(columns.median, 0);
  EXPECT_EQ(columns.mean, 0);
  ASSERT_EQ(columns.intervals.size(), 2u);
  EXPECT_EQ(columns.intervals[0].level, "90");
  EXPECT_EQ(columns.intervals[0].low, 1);
  EXPECT_EQ(columns.intervals[0].high, 4);
  const models::ForecastColumns of_distribution({"", "-median", "-lo-80", "-hi-80"});
  EXPECT_EQ(of_distribution.mean, 0);
  EXPECT_EQ(of_distribution.median, 1);
}

TEST(Coverage, CountsTheTruthsInside) {
  Settings settings = quick_settings();
  settings.loss.name = "Normal";
  settings.loss.level = {50, 99.9};
  Session session(settings);
  ASSERT_TRUE(session.run());
  const auto windows =
      models::windows_of(session.data, session.data.part(&TimeSplit::test), session.forecaster);
  const auto result = models::evaluate(session.forecaster, windows, session.data.series, 16);
  ASSERT_EQ(result.coverage.size(), 2u);
  EXPECT_EQ(result.coverage[0].level, "99.9");
  EXPECT_GT(result.coverage[0].share, 0.9);
  EXPECT_LT(result.coverage[1].share, result.coverage[0].share);
  EXPECT_GT(result.coverage[1].share, 0.1);
}

class StoredForecaster : public testing::TestWithParam<const char*> {};

TEST_P(StoredForecaster, ComesBackWithAllThatItNeeds) {
  Settings settings = quick_settings(GetParam());
  settings.data.columns.time_column = "b, \"c\"";
  settings.data.season = 12;
  settings.loss = {.name = "StudentT", .level = {70}, .quantiles = {}, .scaler_type = "revin"};
  const Session session(settings);
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  const Forecaster loaded = models::load_forecaster(file.path(), "", 32);
  EXPECT_EQ(loaded.data.columns.time_column, settings.data.columns.time_column);
  EXPECT_EQ(loaded.data.columns.targets, settings.data.columns.targets);
  EXPECT_EQ(loaded.data.season, 12);
  EXPECT_EQ(loaded.settings.attention, settings.model.attention);
  EXPECT_TRUE(torch::equal(loaded.scalers.at("b").mean, session.forecaster.scalers.at("b").mean));
  session.forecaster.train(false);
  const auto batch = session.train_windows.batch(torch::arange(3));
  torch::manual_seed(1);
  const torch::Tensor before = session.forecaster.forecast(batch);
  torch::manual_seed(1);
  EXPECT_LT(max_difference(loaded.forecast(batch), before), 1e-5);  // another block size
  EXPECT_EQ(before.size(3), 4);  // mean, median and an interval
}

INSTANTIATE_TEST_SUITE_P(Models, StoredForecaster,
                         testing::Values("TFT", "Informer", "Autoformer", "FEDformer", "PatchTST",
                                         "iTransformer"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Forecaster, RefusesAFileOfSomethingElse) {
  EXPECT_THAT([&] { models::load_forecaster(fixture_path("patchtst_train_bn"), "", 64); },
              ThrowsMessage<c10::ValueError>(HasSubstr("expected a model written by flash_train")));
}

TEST(Forecaster, RefusesAnAttentionThatWouldBeAnotherModel) {
  const Session session(quick_settings("Autoformer"));
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  EXPECT_THAT([&] { models::load_forecaster(file.path(), "flash", 64); },
              ThrowsMessage<c10::ValueError>(HasSubstr("makes it another model")));
}

TEST(Forecaster, OffersOnlyTheAttentionThatTheModelHas) {
  Settings settings = quick_settings("Informer");
  settings.model.attention = "native";
  EXPECT_THAT([&] { Session session(settings); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected --attention of Informer to be flash or standard, got native")));
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
