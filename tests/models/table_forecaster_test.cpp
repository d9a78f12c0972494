// Forecasts, forecast errors, and files of forecasters.

#include "train/output/table_forecaster.h"

#include <flash_attention/models/checkpoint.h>
#include <flash_attention/models/registry.h>
#include <flash_attention/models/tft.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "models/fixture.h"
#include "models/temporary_file.h"
#include "models/training_session.h"
#include "tolerances.h"
#include "train/output/evaluation.h"

namespace flash::tests {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

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
  TableForecaster forecaster =
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

TEST(Evaluation, WeightsSeriesByTheirNumberOfWindows) {
  // Both series increase by 1, so naive is off by 1 ... 4, but the longer one has more windows.
  Settings settings = quick_settings();
  settings.data.table_scaler = "none";
  settings.data.split = {.train_rows = 28, .validation_rows = 4};
  TableForecaster forecaster =
      models::make_forecaster(settings.data, settings.model, settings.loss, 2);
  std::vector<Series> panel = waves();
  panel[0].values = torch::arange(42.0, torch::kDouble).unsqueeze(0);
  panel[1].values = torch::arange(60.0, torch::kDouble).unsqueeze(0);
  const PreparedData data = models::prepare_training(panel, forecaster);
  const auto windows = models::windows_of(data, data.part(&TimeSplit::test), forecaster);
  const auto result = models::evaluate(forecaster, windows, data.series, 64);
  EXPECT_EQ(result.windows, 7 + 25);
  for (const auto& series : result.series) {
    EXPECT_DOUBLE_EQ(series.naive, 2.5) << series.name;
    EXPECT_DOUBLE_EQ(series.seasonal_naive, 7.0) << series.name;
  }
}

TEST(Evaluation, UsesTheMedianForAbsoluteAndTheMeanForSquaredErrors) {
  Settings settings = quick_settings();
  settings.data.table_scaler = "none";
  settings.loss.name = "Poisson";  // the median is an integer, the mean is not
  TableForecaster forecaster =
      models::make_forecaster(settings.data, settings.model, settings.loss, 2);
  std::vector<Series> panel = waves();
  for (Series& one : panel) one.values = torch::poisson(torch::full_like(one.values, 2.0));
  const PreparedData data = models::prepare_training(panel, forecaster);
  const auto windows = models::windows_of(data, data.part(&TimeSplit::test), forecaster);
  const int64_t all = windows.size();
  const auto result = models::evaluate(forecaster, windows, data.series, all);

  const auto batch = windows.batch(torch::arange(all));
  const torch::Tensor forecast = forecaster.forecast(batch).to(torch::kDouble);
  const auto errors = [&](const char* name) {
    const auto names = forecaster.loss->output_names();
    const auto column = std::find(names.begin(), names.end(), name) - names.begin();
    return forecast.select(3, column) - batch.future;
  };
  // The same float64 values, summed in another order.
  EXPECT_NEAR(result.model.mae, errors("-median").abs().mean().item<double>(), kModelFloat64);
  EXPECT_NEAR(result.model.mse, errors("").square().mean().item<double>(), kModelFloat64);
  EXPECT_GT(max_difference(errors("-median"), errors("")), 0.01);
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

TEST(Coverage, CountsTrueValuesInsideTheInterval) {
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

TEST(TableForecaster, KeepsItsLossThroughAFile) {
  Settings settings = quick_settings();
  settings.loss = {
      .name = "HuberLoss", .level = {70}, .quantiles = {0.25, 0.5}, .q = 0.75, .delta = 0.125};
  const Session session(settings);
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  const TableForecaster loaded = models::load_forecaster(file.path(), "", 64);
  for (const TableForecaster* forecaster : {&session.forecaster, &loaded}) {
    EXPECT_EQ(forecaster->loss->name(), "HuberLoss");
    const models::LossOptions& options = forecaster->loss->options;
    EXPECT_EQ(options.level(), settings.loss.level);
    EXPECT_EQ(options.quantiles(), settings.loss.quantiles);
    EXPECT_EQ(options.q(), 0.75);
    EXPECT_EQ(options.delta(), 0.125);
  }
}

class StoredForecaster : public testing::TestWithParam<const char*> {};

TEST_P(StoredForecaster, RoundTripsEverything) {
  Settings settings = quick_settings(GetParam());
  settings.data.columns.time_column = "b, \"c\"";
  settings.data.season = 12;
  settings.loss = {.name = "StudentT", .level = {70}, .quantiles = {}, .scaler_type = "revin"};
  const Session session(settings);
  const std::string learned = "revin_weight";
  session.forecaster.norm->named_parameters()[learned].detach().fill_(1.25);
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  const TableForecaster loaded = models::load_forecaster(file.path(), "", 32);
  EXPECT_EQ(loaded.data.columns.time_column, settings.data.columns.time_column);
  EXPECT_EQ(loaded.data.columns.targets, settings.data.columns.targets);
  EXPECT_EQ(loaded.data.season, 12);
  EXPECT_TRUE(torch::equal(loaded.norm->named_parameters()[learned],
                           session.forecaster.norm->named_parameters()[learned]));
  // As in neuralforecast, which therefore reads it.
  EXPECT_TRUE(models::read_safetensors(file.path()).tensors.contains("scaler." + learned));
  EXPECT_EQ(loaded.settings.attention, settings.model.attention);
  EXPECT_TRUE(torch::equal(loaded.scalers.at("b").mean, session.forecaster.scalers.at("b").mean));
  session.forecaster.train(false);
  const auto batch = session.train_windows.batch(torch::arange(3));
  torch::manual_seed(1);
  const torch::Tensor before = session.forecaster.forecast(batch);
  torch::manual_seed(1);
  EXPECT_LT(max_difference(loaded.forecast(batch), before), 1e-5);  // another block size
  EXPECT_EQ(before.size(3), 4);                                     // mean, median and an interval
}

INSTANTIATE_TEST_SUITE_P(Models, StoredForecaster,
                         testing::Values("TFT", "Informer", "Autoformer", "FEDformer", "PatchTST",
                                         "iTransformer"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TableForecaster, RejectsNamesThatAreNotUtf8) {
  Session session(quick_settings("TFT"));
  session.forecaster.data.columns.time_column = "caf\xE9";
  const TemporaryFile file(".safetensors");
  EXPECT_THAT([&] { models::save_forecaster(file.path(), session.forecaster); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr(file.path() + ": expected paths and names in UTF-8, got: ")));
  const auto model = models::make_model(
      "TFT", R"({"h": 4, "input_size": 24, "hidden_size": 8, "hist_exog_list": ["x"]})");
  auto* tft = dynamic_cast<models::TFTImpl*>(model.get());
  tft->options.hist_exog_list({"caf\xE9"});
  EXPECT_THAT([&] { models::save_model(file.path(), *tft); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("save_model: expected names and options in UTF-8, got: ")));
}

TEST(TableForecaster, RejectsOtherFiles) {
  EXPECT_THAT([&] { models::load_forecaster(fixture_path("patchtst_train_bn"), "", 64); },
              ThrowsMessage<c10::ValueError>(HasSubstr("expected a model written by flash_train")));
}

TEST(TableForecaster, RejectsAnAttentionThatWouldBeAnotherModel) {
  const Session session(quick_settings("Autoformer"));
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  EXPECT_THAT([&] { models::load_forecaster(file.path(), "flash", 64); },
              ThrowsMessage<c10::ValueError>(HasSubstr("makes it a different model")));
}

TEST(TableForecaster, AcceptsOnlyTheAttentionsOfItsModel) {
  Settings settings = quick_settings("Informer");
  settings.model.attention = "native";
  EXPECT_THAT([&] { Session session(settings); },
              ThrowsMessage<c10::ValueError>(HasSubstr(
                  "expected --attention of Informer to be flash or standard, got native")));
}

}  // namespace
}  // namespace flash::tests
