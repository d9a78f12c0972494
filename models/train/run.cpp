#include "train/run.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <iostream>

#include "train/loop/training_run.h"
#include "train/output/results.h"
#include "train/prepared_data.h"

namespace flash::models {
namespace {

TableForecaster load(const Settings& settings) {
  check_outputs(settings);
  if (settings.threads > 0) at::set_num_threads(settings.threads);
  TableForecaster forecaster =
      load_forecaster(settings.input, settings.model.attention, settings.model.block_size);
  if (settings.batch_size_given) forecaster.batch_size = settings.training.batch_size;
  forecaster.data.columns.sort = forecaster.data.columns.sort || settings.data.columns.sort;
  if (settings.season_given) forecaster.data.season = settings.data.season;
  check_season(forecaster.data.season, forecaster.settings.input_size);
  return forecaster;
}

int run_evaluation(const Settings& settings) {
  const TableForecaster forecaster = load(settings);
  const PreparedData data =
      prepare_evaluation(announced(read_panel(settings.csv, forecaster.data.columns)), forecaster);
  OutputWriter writer;
  finish({.settings = settings,
          .forecaster = forecaster,
          .series = data.series,
          .test_windows = windows_of(data, data.part(&TimeSplit::test), forecaster),
          .training = std::nullopt,
          .memory_before_bytes = process_memory().now},
         writer);
  return 0;
}

int run_prediction(const Settings& settings) {
  const TableForecaster forecaster = load(settings);
  const PreparedData data =
      prepare_forecast(announced(read_open_panel(settings.csv, forecaster.data.columns,
                                                 forecaster.settings.horizon)),
                       forecaster);
  OutputWriter writer;
  write_forecasts(settings.output,
                  forecast_windows(forecaster, last_windows(data, forecaster), data.series,
                                   /*truth_is_known=*/false, forecaster.batch_size),
                  writer);
  writer.finish();
  return 0;
}

}  // namespace

int run(const Settings& settings, Processes& processes) {
  const bool trains = settings.command == Settings::Command::kTrain ||
                      settings.command == Settings::Command::kResume;
  TORCH_CHECK_VALUE(trains || processes.alone(), "expected one process to ",
                    settings.command == Settings::Command::kEvaluate ? "evaluate" : "predict",
                    ", got ", processes.count(), "; run it without torchrun");
  // Gradients that become denormal would make each step several times slower.
  at::globalContext().setFlushDenormal(true);
  switch (settings.command) {
    case Settings::Command::kTrain:
      return run_training(settings, processes);
    case Settings::Command::kResume:
      return run_resumed_training(settings, processes);
    case Settings::Command::kEvaluate:
      return run_evaluation(settings);
    case Settings::Command::kPredict:
      return run_prediction(settings);
  }
  return 1;
}

}  // namespace flash::models
