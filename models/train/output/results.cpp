#include "train/output/results.h"

#include <ATen/Parallel.h>

#include <iostream>

#include "train/output/picture.h"

namespace flash::models {
void check_season(int64_t season, int64_t input_size) {
  TORCH_CHECK_VALUE(season <= input_size, "expected --season of at most the input size ",
                    input_size, ", got ", season);
}

std::vector<Series> announced(std::vector<Series> panel) {
  std::cout << describe_times(panel) << std::endl;
  return panel;
}

void write_forecasts(const OutputSettings& output, const ForecastTable& table,
                     OutputWriter& writer) {
  writer.write("Forecast", output.forecast_csv,
               [&] { write_forecast_csv(output.forecast_csv, table); });
  writer.write("Picture", output.forecast_png, [&] { draw_forecast(output.forecast_png, table); });
}

void finish(const Finished& finished, OutputWriter& writer) {
  const Settings& settings = finished.settings;
  const TableForecaster& forecaster = finished.forecaster;
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
  if (!settings.output.forecast_csv.empty() || !settings.output.forecast_png.empty()) {
    write_forecasts(settings.output,
                    forecast_windows(forecaster, finished.test_windows, finished.series,
                                     /*truth_is_known=*/true, batch_size),
                    writer);
  }
  writer.write("Report", settings.output.report,
               [&] { write_report(settings.output.report, report); });
  writer.finish();
}

}  // namespace flash::models
