#include "train/results.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "train/picture.h"

namespace flash::models {
namespace {

void check_output(const std::string& path) {
  if (path.empty()) return;
  const std::filesystem::path parent = std::filesystem::absolute(path).parent_path();
  TORCH_CHECK_VALUE(access(parent.c_str(), W_OK) == 0, path, ": cannot be written, as the folder ",
                    parent.string(), " is not writable: ", std::strerror(errno));
  TORCH_CHECK_VALUE(!std::filesystem::is_directory(path), path,
                    ": expected a file to write, got a folder");
}

void say_written(const char* what, const std::string& path) {
  std::cout << what << " written to " << path << "\n";
}

}  // namespace

void check_outputs(const OutputSettings& output) {
  for (const auto* path : {&output.model, &output.checkpoint, &output.forecast_csv,
                           &output.forecast_png, &output.report}) {
    check_output(*path);
  }
  if (!output.forecast_png.empty()) check_pictures();
}

void check_season(int64_t season, int64_t input_size) {
  TORCH_CHECK_VALUE(season <= input_size, "expected --season of at most the input size ",
                    input_size, ", got ", season);
}

void write_forecasts(const OutputSettings& output, const ForecastTable& table) {
  if (!output.forecast_csv.empty()) {
    write_forecast_csv(output.forecast_csv, table);
    say_written("Forecast", output.forecast_csv);
  }
  if (!output.forecast_png.empty()) {
    draw_forecast(output.forecast_png, table);
    say_written("Picture", output.forecast_png);
  }
}

void finish(const Finished& finished) {
  const Settings& settings = finished.settings;
  const Forecaster& forecaster = finished.forecaster;
  const int64_t batch_size = forecaster.batch_size;
  RunReport report{
      .csv = settings.csv,
      .model = forecaster.settings,
      .loss = forecaster.loss_settings.name,
      .threads = at::get_num_threads(),
      .season = forecaster.data.season,
      .parameters = forecaster.parameter_count(),
      .training_settings = settings.training,
      .training = finished.training,
      .memory_before_bytes = finished.memory_before_bytes,
      .memory_peak_bytes = 0,
      .test = evaluate(forecaster, finished.test_windows, finished.series, batch_size)};
  report.memory_peak_bytes = process_memory().peak;
  print_report(std::cout, report);
  if (!settings.output.model.empty()) {
    save_forecaster(settings.output.model, forecaster);
    say_written("Model", settings.output.model);
  }
  if (!settings.output.forecast_csv.empty() || !settings.output.forecast_png.empty()) {
    write_forecasts(settings.output,
                    forecast_windows(forecaster, finished.test_windows, finished.series,
                                     /*truth_is_known=*/true, batch_size));
  }
  if (!settings.output.report.empty()) {
    write_report(settings.output.report, report);
    say_written("Report", settings.output.report);
  }
}

}  // namespace flash::models
