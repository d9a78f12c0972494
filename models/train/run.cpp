#include "train/run.h"

#include <torch/torch.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "data/csv_dataset.h"
#include "data/scaler.h"
#include "train/forecaster.h"
#include "train/progress.h"
#include "train/report.h"
#include "train/trainer.h"

namespace flash::models {
namespace {

ModelConfig attention_config(const Settings& settings) {
  return {.use_flash_attention = settings.attention == "flash",
          .flash_block_size = settings.block_size};
}

/// An unwritable path should be known before an hour of training, not after it.
void check_output(const std::string& path) {
  if (path.empty()) return;
  const std::filesystem::path parent = std::filesystem::absolute(path).parent_path();
  TORCH_CHECK_VALUE(access(parent.c_str(), W_OK) == 0, path, ": cannot be written, as the folder ",
                    parent.string(), " is not writable: ", std::strerror(errno));
  TORCH_CHECK_VALUE(!std::filesystem::is_directory(path), path,
                    ": expected a file to write, got a folder");
}

void check_settings(const Settings& settings) {
  for (const auto* path : {&settings.output, &settings.forecast_csv, &settings.report}) {
    check_output(*path);
  }
}

void check_season(int64_t season, int64_t input_size) {
  TORCH_CHECK_VALUE(season <= input_size, "expected --season of at most the input size ",
                    input_size, ", got ", season);
}

PatchTST make_model(const Settings& settings) {
  return PatchTST(PatchTSTOptions(settings.horizon, settings.input_size)
                      .patch_len(settings.patch_len)
                      .stride(settings.stride)
                      .hidden_size(settings.hidden_size)
                      .n_heads(settings.n_heads)
                      .encoder_layers(settings.encoder_layers)
                      .linear_hidden_size(settings.linear_hidden_size)
                      .dropout(settings.dropout)
                      .config(attention_config(settings)));
}

/// A table and its parts, ready for a model.
struct PreparedData {
  CsvTable table;
  TimeSplit split;
  Scaler scaler;
  at::Tensor scaled;  // float32 [columns, rows]
};

PreparedData prepare(const std::string& csv, const DataSettings& data, int64_t input_size,
                     int64_t horizon, const Scaler* known_scaler) {
  PreparedData prepared;
  prepared.table = read_csv(csv, data.columns);
  const at::Tensor& values = prepared.table.values;
  prepared.split = split_by_time(values.size(1), data.train_fraction, data.validation_fraction,
                                 input_size, horizon);
  const RowRange train = prepared.split.train;
  prepared.scaler =
      known_scaler ? *known_scaler : Scaler::fit(values.slice(1, train.begin, train.end));
  prepared.scaled = prepared.scaler.transform(values).to(at::kFloat);
  return prepared;
}

WindowDataset windows_of(const PreparedData& data, RowRange rows, const PatchTSTOptions& options) {
  return WindowDataset(data.scaled, rows, /*past_inside=*/rows.begin == 0, options.input_size(),
                       options.h());
}

int64_t count_parameters(const PatchTST& model) {
  int64_t count = 0;
  for (const torch::Tensor& parameter : model->parameters()) {
    if (parameter.requires_grad()) count += parameter.numel();
  }
  return count;
}

/// Test error, files and the printed table: the same after training and after loading.
void finish(const Settings& settings, Forecaster& forecaster, const PreparedData& data,
            std::optional<TrainingResult> training, int64_t memory_before) {
  const PatchTSTOptions& options = forecaster.model->options;
  const WindowDataset test = windows_of(data, data.split.test, options);
  RunReport report{
      .attention = settings.attention,
      .threads = at::get_num_threads(),
      .season = forecaster.data.season,
      .parameters = count_parameters(forecaster.model),
      .patches = forecaster.model->named_parameters()["model.backbone.W_pos"].size(0),
      .training = std::move(training),
      .memory_before_bytes = memory_before,
      .memory_peak_bytes = 0,
      .test = evaluate(forecaster.model, test, data.table, data.scaler, forecaster.data.season)};
  report.memory_peak_bytes = process_memory().peak;
  print_report(std::cout, report);
  const auto written = [](const char* what, const std::string& path) {
    std::cout << what << " written to " << path << "\n";
  };
  if (!settings.output.empty()) {
    save_forecaster(settings.output, forecaster);
    written("Model", settings.output);
  }
  if (!settings.forecast_csv.empty()) {
    write_forecast_csv(settings.forecast_csv, forecaster.model, test, data.table, data.scaler,
                       forecaster.data.season);
    written("Forecast", settings.forecast_csv);
  }
  if (!settings.report.empty()) {
    write_report(settings.report, report, settings);
    written("Report", settings.report);
  }
}

void run_training(const Settings& settings) {
  check_season(settings.data.season, settings.input_size);
  torch::manual_seed(settings.seed);
  Forecaster forecaster{.model = make_model(settings), .scaler = {}, .data = settings.data};
  const PreparedData data = prepare(settings.csv, settings.data, settings.input_size,
                                    settings.horizon, /*known_scaler=*/nullptr);
  forecaster.scaler = data.scaler;
  const PatchTSTOptions& options = forecaster.model->options;
  const WindowDataset train_windows = windows_of(data, data.split.train, options);
  const WindowDataset validation_windows = windows_of(data, data.split.validation, options);
  std::cout << "Training on " << train_windows.size() << " windows of "
            << settings.data.columns.size() << " column(s), " << count_parameters(forecaster.model)
            << " parameters, " << settings.attention << " attention, " << at::get_num_threads()
            << " thread(s)" << std::endl;
  const int64_t memory_before = process_memory().now;
  Progress progress(std::cerr, isatty(STDERR_FILENO) == 1, settings.epochs,
                    steps_per_epoch(train_windows, settings.batch_size));
  TrainingResult training =
      train(forecaster.model, train_windows, validation_windows, settings, progress);
  finish(settings, forecaster, data, std::move(training), memory_before);
}

void run_evaluation(const Settings& settings) {
  Forecaster forecaster = load_forecaster(settings.evaluate, attention_config(settings));
  if (settings.season_given) forecaster.data.season = settings.data.season;
  const PatchTSTOptions& options = forecaster.model->options;
  check_season(forecaster.data.season, options.input_size());
  const PreparedData data =
      prepare(settings.csv, forecaster.data, options.input_size(), options.h(), &forecaster.scaler);
  finish(settings, forecaster, data, /*training=*/std::nullopt, process_memory().now);
}

}  // namespace

void run(const Settings& settings) {
  check_settings(settings);
  if (settings.threads > 0) at::set_num_threads(settings.threads);
  // Gradients that fade to denormals would slow each step down several times.
  at::globalContext().setFlushDenormal(true);
  if (settings.evaluate.empty()) {
    run_training(settings);
  } else {
    run_evaluation(settings);
  }
}

}  // namespace flash::models
