// Forecasts of raw series by the public Forecaster: the same as by hand, and as flash_train's.

#include <ATen/CPUGeneratorImpl.h>
#include <flash_attention/models/checkpoint.h>
#include <flash_attention/models/forecaster.h>
#include <flash_attention/models/registry.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "message_of.h"
#include "models/fixture.h"
#include "models/temporary_file.h"
#include "models/training_session.h"
#include "tolerances.h"
#include "train/output/forecast_table.h"

namespace flash::tests {
namespace {

using models::Forecaster;
using models::RawSeries;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// Sums of a few tens of float32 values of order 1 to 10, scaled and back.
constexpr double kForecastFloat32 = 1e-5;

/// A file of PatchTST with h = 4 and L = 20, as neuralforecast saves it.
models::SafetensorsFile patchtst_file(const json& loss = nullptr, int64_t outputs = 1,
                                      const std::string& scaler = "identity",
                                      const json& configuration = json::object()) {
  torch::manual_seed(3);
  const auto model = models::make_model(
      "PatchTST", R"({"h": 4, "input_size": 20, "hidden_size": 8, "n_heads": 2, "encoder_layers": 2,
                      "linear_hidden_size": 12, "patch_len": 6, "stride": 3})",
      outputs);
  const TemporaryFile file(".safetensors");
  models::save_model(
      file.path(), *model,
      {.tensors = {},
       .metadata = {{"hyper_parameters", json{{"loss", loss}, {"scaler_type", scaler}}.dump()},
                    {"neuralforecast", configuration.dump()}}});
  return models::read_safetensors(file.path());
}

json loss_of(const std::string& name, const json& arguments) {
  return {{"__nf__", "loss"}, {"cls", name}, {"args", arguments}};
}

torch::Tensor wave(int64_t rows, double offset = 5.0) {
  return offset + torch::sin(torch::arange(rows, torch::kDouble) * 0.7);
}

torch::Tensor with_value(const torch::Tensor& values, int64_t row, double value) {
  values[row].fill_(value);
  return values;
}

torch::Tensor network_of(const models::SafetensorsFile& file, const torch::Tensor& window) {
  torch::NoGradGuard no_grad;
  return models::load_model(file)->forward(window.to(torch::kFloat).view({1, -1, 1}));
}

TEST(Forecaster, AppliesTheNetworkToTheLastRows) {
  const models::SafetensorsFile file = patchtst_file();
  const Forecaster forecaster(file);
  EXPECT_EQ(forecaster.model_class(), "PatchTST");
  EXPECT_EQ(forecaster.horizon(), 4);
  EXPECT_EQ(forecaster.input_size(), 20);
  EXPECT_THAT(forecaster.output_names(), ElementsAre("forecast"));
  const torch::Tensor y = wave(50);
  const torch::Tensor forecast = forecaster.predict(y);
  const torch::Tensor expected = network_of(file, y.slice(0, 30)).view({1, 4});
  EXPECT_LT(max_difference(forecast.to(torch::kFloat), expected), kForecastFloat32);
  EXPECT_EQ(forecast.scalar_type(), torch::kDouble);
  EXPECT_FALSE(forecast.is_inference());
  EXPECT_EQ(forecaster.predict(y.to(torch::kFloat)).scalar_type(), torch::kFloat);
  EXPECT_EQ(forecaster.predict(torch::arange(30)).scalar_type(), torch::kFloat);
}

TEST(Forecaster, ForecastsSeriesOfAnyLengthAsEachAlone) {
  const Forecaster forecaster(patchtst_file(nullptr, 1, "robust"));
  std::vector<RawSeries> all;
  std::vector<torch::Tensor> alone;
  for (const int64_t rows : {70, 20, 7, 1}) {
    all.push_back({.y = wave(rows, static_cast<double>(rows))});
    alone.push_back(forecaster.predict(all.back().y));
  }
  EXPECT_LT(max_difference(forecaster.predict(all), torch::cat(alone)), kForecastFloat32);
}

TEST(Forecaster, PadsAShortSeriesWithZerosThatTheWindowScalerLeavesOut) {
  const models::SafetensorsFile file = patchtst_file(nullptr, 1, "standard");
  const torch::Tensor y = wave(7);
  const torch::Tensor padded = torch::cat({torch::zeros(13, torch::kDouble), y});
  const double spread = y.std(/*unbiased=*/false).item<double>() + 1e-6;
  const double mean = y.mean().item<double>();
  const torch::Tensor expected =
      network_of(file, (padded - mean) / spread).view({1, 4}).to(torch::kDouble) * spread + mean;
  EXPECT_LT(max_difference(Forecaster(file).predict(y), expected), kForecastFloat32);
}

TEST(Forecaster, GivesIntervalsByName) {
  const json levels = loss_of("MQLoss", {{"level", {80}}, {"quantiles", nullptr}});
  const models::SafetensorsFile file = patchtst_file(levels, 3);
  const Forecaster forecaster(file);
  EXPECT_THAT(forecaster.output_names(),
              ElementsAre("forecast-median", "forecast-lo-80", "forecast-hi-80"));
  const torch::Tensor y = wave(20);
  const torch::Tensor forecast = forecaster.predict(y);
  EXPECT_EQ(forecast.sizes(), (std::vector<int64_t>{1, 4, 3}));
  EXPECT_LT(max_difference(forecast.to(torch::kFloat), network_of(file, y)), kForecastFloat32);
}

TEST(Forecaster, ReadsQuantilesOfSeveralSeriesInNeuralforecastsOrder) {
  const auto model = models::make_model("iTransformer",
                                        R"({"h": 4, "input_size": 20, "n_series": 2,
                                            "hidden_size": 8, "n_heads": 2, "d_ff": 12})",
                                        /*outputsize_multiplier=*/3);
  model->module().eval();
  const json loss = loss_of("MQLoss", {{"level", {80}}});
  const TemporaryFile file(".safetensors");
  models::save_model(
      file.path(), *model,
      {.tensors = {}, .metadata = {{"hyper_parameters", json{{"loss", loss}}.dump()}}});
  const torch::Tensor y = torch::stack({wave(20), wave(20, 2.0)}).to(torch::kFloat);
  torch::NoGradGuard no_grad;
  const torch::Tensor output = model->forward(y.t().unsqueeze(0));  // [1, 4, series * quantiles]
  EXPECT_LT(max_difference(Forecaster::load(file.path()).predict({{.y = y[0]}, {.y = y[1]}}),
                           output.view({4, 2, 3}).transpose(0, 1)),
            kForecastFloat32);
}

TEST(Forecaster, ScalesWholeSeriesAsTheFolderSays) {
  const torch::Tensor y = with_value(wave(50), 10, 40.0);  // an outlier before the window
  const torch::Tensor sorted = std::get<0>(y.sort());
  const auto number = [](const torch::Tensor& one) { return one.item<double>(); };
  const double median = number(sorted.slice(0, 24, 26).mean());
  const torch::Tensor distances = std::get<0>((y - median).abs().sort());
  const double quartile = number(sorted[12]) + 0.25 * number(sorted[13] - sorted[12]);
  const double upper = number(sorted[36]) + 0.75 * number(sorted[37] - sorted[36]);
  const std::map<std::string, std::pair<double, double>> expected{
      {"standard", {number(y.mean()), number(y.std(false))}},
      {"minmax", {number(y.min()), number(y.max() - y.min())}},
      {"robust", {median, number(distances.slice(0, 24, 26).mean())}},
      {"robust-iqr", {median, upper - quartile}}};
  for (const auto& [type, statistics] : expected) {
    const auto [shift, spread] = statistics;
    const auto file = patchtst_file(nullptr, 1, "identity", {{"local_scaler_type", type}});
    const torch::Tensor of_network =
        network_of(file, (y.slice(0, 30) - shift) / spread).view({1, 4}).to(torch::kDouble);
    EXPECT_LT(max_difference(Forecaster(file).predict(y), of_network * spread + shift),
              kForecastFloat32 * spread)
        << type;
  }
}

/// Forecasts of flash_train's own code for series whose last four rows are the future.
torch::Tensor of_flash_train(const models::TableForecaster& forecaster, std::vector<Series> panel) {
  for (Series& series : panel) series.known = 116;
  const models::PreparedData data = models::prepare_forecast(std::move(panel), forecaster);
  const auto table =
      models::forecast_windows(forecaster, models::last_windows(data, forecaster), data.series,
                               /*truth_is_known=*/false, forecaster.batch_size);
  std::vector<torch::Tensor> forecasts;
  for (const auto& series : table.series) forecasts.push_back(series.forecast);
  return torch::stack(forecasts);
}

class FlashTrainFile : public testing::TestWithParam<const char*> {};

TEST_P(FlashTrainFile, GivesItsForecastsInUnitsOfEachSeries) {
  const std::string model_class = GetParam();
  Settings settings = quick_settings(model_class);
  settings.loss = {.name = "StudentT", .level = {70}, .quantiles = {}, .scaler_type = "robust"};
  std::vector<Series> panel = waves();
  const bool has_all = model_class == "TFT";
  if (model_class != "PatchTST") settings.data.columns.futr_exog = {"known"};
  if (has_all) settings.data.columns.hist_exog = {"seen"};
  if (has_all) settings.data.columns.stat_exog = {"kind"};
  const auto columns = static_cast<int64_t>(1 + settings.data.columns.futr_exog.size() +
                                            settings.data.columns.hist_exog.size());
  std::vector<RawSeries> raw;
  for (Series& series : panel) {
    const torch::Tensor y = series.values * 30.0 + 100.0;
    series.values = torch::cat({y, torch::randn({columns - 1, 120}, torch::kDouble)});
    if (has_all) series.stat = torch::tensor({raw.empty() ? 1.0 : 3.0}, torch::kDouble);
    raw.push_back({.y = series.values[0].slice(0, 0, 116), .name = series.name});
    if (columns > 1) raw.back().futr_exog = series.values.slice(0, 1, 2).t();
    if (has_all) raw.back().hist_exog = series.values.slice(0, 2, 3).slice(1, 0, 116).t();
    if (has_all) raw.back().stat_exog = series.stat;
  }
  torch::manual_seed(5);
  models::TableForecaster trained =
      models::make_forecaster(settings.data, settings.model, settings.loss, 2);
  models::prepare_training(panel, trained);
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), trained);
  const torch::Tensor state = at::detail::getDefaultCPUGenerator().get_state();
  const Forecaster forecaster = Forecaster::load(file.path());
  EXPECT_THAT(forecaster.series_names(), ElementsAre("a", "b"));
  EXPECT_EQ(forecaster.columns().targets, settings.data.columns.targets);
  const torch::Tensor forecast = forecaster.predict(raw);
  EXPECT_TRUE(torch::equal(state, at::detail::getDefaultCPUGenerator().get_state()));
  EXPECT_LT(max_difference(forecast, of_flash_train(trained, panel)), 100.0 * kForecastFloat32);
  EXPECT_TRUE(torch::equal(forecaster.predict(raw), forecast));

  const TemporaryFile copy(".safetensors");
  forecaster.save(copy.path());
  EXPECT_TRUE(torch::equal(Forecaster::load(copy.path()).predict(raw), forecast));
}

INSTANTIATE_TEST_SUITE_P(Models, FlashTrainFile,
                         testing::Values("TFT", "Informer", "Autoformer", "FEDformer", "PatchTST",
                                         "iTransformer"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Forecaster, ReadsAFolderOfNeuralforecast) {
  const TemporaryFile folder("");
  std::filesystem::create_directory(folder.path());
  const auto path = [&](const char* name) { return folder.path() + "/" + name; };
  const auto message = [&](const std::string& model = "") {
    return message_of<c10::ValueError>([&] { Forecaster::load(folder.path(), model); });
  };
  EXPECT_THAT(message(), HasSubstr("configuration.json, as NeuralForecast.save"));
  std::filesystem::create_directory(path("configuration.json"));
  EXPECT_THAT(message(), HasSubstr("configuration.json, as NeuralForecast.save"));
  std::filesystem::remove(path("configuration.json"));
  std::ofstream(path("configuration.json"))
      << json{{"nf_format", "2"},
              {"configuration", {{"local_scaler_type", "standard"}, {"target_col", "sales"}}}};
  EXPECT_THAT(message(), HasSubstr("got none"));
  models::SafetensorsFile file = patchtst_file();
  file.metadata.erase("neuralforecast");
  models::write_safetensors(path("PatchTST_0.safetensors"), file.tensors, file.metadata);
  models::write_safetensors(path("dataset.safetensors"), {});
  const Forecaster forecaster = Forecaster::load(folder.path());
  EXPECT_THAT(forecaster.columns().targets, ElementsAre("sales"));
  const auto scaled = patchtst_file(nullptr, 1, "identity", {{"local_scaler_type", "standard"}});
  const torch::Tensor y = wave(30, 1000.0), expected = Forecaster(scaled).predict(y);
  EXPECT_TRUE(torch::equal(forecaster.predict(y), expected));
  const TemporaryFile one(".safetensors");  // which keeps the folder's configuration
  forecaster.save(one.path());
  EXPECT_TRUE(torch::equal(Forecaster::load(one.path()).predict(y), expected));
  EXPECT_TRUE(torch::equal(Forecaster(forecaster.contents()).predict(y), expected));

  models::write_safetensors(path("PatchTST_1.safetensors"), file.tensors, file.metadata);
  EXPECT_THAT(message(), HasSubstr("or the name of one of them as `model`, got PatchTST_0, "));
  EXPECT_THAT(message("TFT_0"), HasSubstr("(PatchTST_0, PatchTST_1), got TFT_0"));
  EXPECT_TRUE(torch::equal(Forecaster::load(folder.path(), "PatchTST_1").predict(y), expected));

  // A file of it alone, and one that does not belong to it.
  EXPECT_TRUE(torch::equal(Forecaster::load(path("PatchTST_1.safetensors")).predict(y), expected));
  const Forecaster unscaled(file);
  unscaled.save(path("other.safetensors"));
  EXPECT_TRUE(
      torch::equal(Forecaster::load(path("other.safetensors")).predict(y), unscaled.predict(y)));
  EXPECT_FALSE(torch::equal(unscaled.predict(y), expected));
  std::filesystem::remove_all(folder.path());
}

TEST(Forecaster, RefusesAFolderThatCannotBeRead) {
  namespace fs = std::filesystem;
  const TemporaryFile folder("");
  const fs::path configuration = fs::path(folder.path()) / "configuration.json";
  fs::create_directory(folder.path());
  std::ofstream(configuration) << "{}";
  fs::permissions(folder.path(), fs::perms(0111));  // enter, but not list
  const bool is_root = geteuid() == 0;              // whom permissions do not stop
  const bool stopped = !is_root || seteuid(65534) == 0;
  std::error_code error;
  const bool entered = fs::is_regular_file(configuration, error);
  const std::string message = message_of<c10::ValueError>([&] { Forecaster::load(folder.path()); });
  if (is_root) {
    ASSERT_EQ(seteuid(0), 0);
  }
  fs::permissions(folder.path(), fs::perms::owner_all);
  fs::remove_all(folder.path());
  if (!stopped || !entered) GTEST_SKIP() << "no other user who may enter the folder";
  EXPECT_THAT(message, HasSubstr("expected a folder that can be read, got " + folder.path()));
}

TEST(Forecaster, SaysWhatItExpectedOfSeries) {
  const Forecaster forecaster(patchtst_file());
  const auto message = [&](const std::vector<RawSeries>& series) {
    return message_of<c10::ValueError>([&] { forecaster.predict(series); });
  };
  EXPECT_THAT(message({}), HasSubstr("expected at least one series"));
  EXPECT_THAT(message({{.y = wave(20)}, {.y = torch::zeros({3, 20}), .name = "b"}}),
              HasSubstr("for series 1 (b) y [rows] with at least one row, got a tensor [3, 20]"));
  EXPECT_THAT(message({{.y = torch::zeros({0})}}), HasSubstr("got a tensor [0]"));
  EXPECT_THAT(message({RawSeries{}}), HasSubstr("got none"));
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(message({{.y = with_value(wave(30), 4, bad)}}), HasSubstr("in row 4, counted"));
  }
  EXPECT_THAT(message({{.y = wave(30) * 1e300}}), HasSubstr("within the range of float32"));
  EXPECT_THAT(message({{.y = torch::ones({30}, torch::kBool)}}), HasSubstr("of real numbers"));
  EXPECT_THAT(message({{.y = wave(30), .futr_exog = torch::zeros({34, 1})}}),
              HasSubstr("no futr_exog, of which the model has no columns"));
}

TEST(Forecaster, SaysWhatItExpectedOfExogenousColumns) {
  const auto model = models::make_model(
      "TFT", R"({"h": 4, "input_size": 8, "hidden_size": 8, "futr_exog_list": ["f"],
                 "hist_exog_list": ["x", "z"], "stat_exog_list": ["s"]})");
  const TemporaryFile file(".safetensors");
  models::save_model(file.path(), *model);
  const Forecaster forecaster = Forecaster::load(file.path());
  const RawSeries good{.y = wave(9),
                       .futr_exog = torch::ones({13, 1}),
                       .hist_exog = torch::ones({9, 2}),
                       .stat_exog = torch::ones({1})};
  EXPECT_EQ(forecaster.predict({good}).sizes(), (std::vector<int64_t>{1, 4}));
  const auto message = [&](at::Tensor RawSeries::*member, const torch::Tensor& value) {
    RawSeries bad = good;
    bad.*member = value;
    return message_of<c10::ValueError>([&] { forecaster.predict({bad}); });
  };
  EXPECT_THAT(message(&RawSeries::futr_exog, {}),
              HasSubstr("futr_exog [rows + h = 13, 1] (f), got none"));
  EXPECT_THAT(message(&RawSeries::futr_exog, torch::ones({9, 1})), HasSubstr("tensor [9, 1]"));
  EXPECT_THAT(message(&RawSeries::hist_exog, torch::ones({9, 1})),
              HasSubstr("hist_exog [rows = 9, 2] (x, z), got a tensor [9, 1]"));
  EXPECT_THAT(message(&RawSeries::stat_exog, {}), HasSubstr("stat_exog [1] (s), got none"));
}

TEST(Forecaster, TakesTheNamesOfTheTraining) {
  const Session session(quick_settings());
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  const Forecaster forecaster = Forecaster::load(file.path());
  EXPECT_THAT(message_of<c10::ValueError>([&] { forecaster.predict(wave(30)); }),
              HasSubstr("the name of a series that the model was trained on (a, b), whose scaler "
                        "it takes, got none"));
  EXPECT_THAT(
      message_of<c10::ValueError>([&] { forecaster.predict({{.y = wave(30), .name = "c"}}); }),
      HasSubstr("got c"));
}

TEST(Forecaster, TakesAllSeriesThatTheModelForecastsTogether) {
  const Session session(quick_settings("iTransformer"));
  const TemporaryFile file(".safetensors");
  models::save_forecaster(file.path(), session.forecaster);
  const Forecaster forecaster = Forecaster::load(file.path());
  EXPECT_EQ(forecaster.n_series(), 2);
  EXPECT_THAT(
      message_of<c10::ValueError>([&] { forecaster.predict({{.y = wave(30), .name = "a"}}); }),
      HasSubstr("expected the 2 series that the model forecasts together, got 1"));
}

TEST(Forecaster, RejectsLossesAndScalersThatItLacks) {
  const auto message = [](const models::SafetensorsFile& file) {
    return message_of<c10::ValueError>([&] { Forecaster refused(file); });
  };
  EXPECT_THAT(message(patchtst_file(loss_of("IQLoss", json::object()))),
              HasSubstr("expected a model with one of the losses DistributionLoss, HuberLoss"));
  EXPECT_THAT(message(patchtst_file({{"cls", 3}})), HasSubstr("the loss as neuralforecast writes"));
  EXPECT_THAT(message(patchtst_file(loss_of("MQLoss", {{"level", "high"}}), 5)),
              HasSubstr("the loss as neuralforecast writes"));
  EXPECT_THAT(message(patchtst_file(nullptr, 2)),
              HasSubstr("expected a model with the 1 outputs of its loss MAE, got one with 2"));
  EXPECT_THAT(message(patchtst_file(nullptr, 1, "boxcox")), HasSubstr("boxcox"));
  const auto with = [](const char* key, const json& value) {
    return patchtst_file(nullptr, 1, "identity", {{key, value}});
  };
  EXPECT_THAT(message(with("local_scaler_type", "boxcox")),
              HasSubstr("expected local_scaler_type to be standard, robust, robust-iqr, minmax or "
                        "none, got boxcox"));
  EXPECT_THAT(message(with("local_static_scaler_type", 3)), HasSubstr("expected metadata as"));
}

}  // namespace
}  // namespace flash::tests
