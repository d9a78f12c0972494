#include "train/training_run.h"

#include <torch/torch.h>
#include <unistd.h>

#include <iostream>

#include "train/interrupt.h"
#include "train/prepared_data.h"
#include "train/results.h"
#include "train/run.h"
#include "train/run_file.h"

namespace flash::models {
namespace {

/// Without --checkpoint: beside the model, or in the current folder where no model is kept.
std::string checkpoint_path(const OutputSettings& output) {
  if (!output.checkpoint.empty()) return output.checkpoint;
  return (output.model.empty() ? "flash_train" : output.model) + ".checkpoint";
}

/// From `run` where it is not null.
int train(const Settings& settings, const RunFile* run) {
  check_outputs(settings.output);
  check_season(settings.data.season, settings.model.input_size);
  if (settings.threads > 0) at::set_num_threads(settings.threads);
  std::vector<Series> series = read_panel(settings.csv, settings.data.columns);
  torch::manual_seed(settings.training.seed);
  Forecaster forecaster = make_forecaster(
      settings.data, settings.model, settings.loss, static_cast<int64_t>(series.size()),
      run ? limit_of_file(run->file.tensors) : limit_of_machine());
  forecaster.batch_size = settings.training.batch_size;
  // Dropout draws the same numbers, whatever making the model has drawn.
  torch::manual_seed(settings.training.seed);
  const PreparedData data = prepare_training(std::move(series), forecaster);
  const WindowDataset train_windows = windows_of(data, data.part(&TimeSplit::train), forecaster);
  const WindowDataset validation_windows =
      windows_of(data, data.part(&TimeSplit::validation), forecaster);
  const WindowDataset test_windows = windows_of(data, data.part(&TimeSplit::test), forecaster);
  Trainer trainer(forecaster, train_windows, validation_windows, settings.training);
  const std::string data_fingerprint = fingerprint(data);
  if (run != nullptr) restore_run(*run, forecaster, trainer, data_fingerprint);

  std::cout << (run == nullptr ? "Training " : "Going on with the training of ")
            << settings.model.model_class << " on " << train_windows.size() << " windows of "
            << data.series.size() << " series, " << forecaster.parameter_count() << " parameters, "
            << settings.model.attention << " attention, " << at::get_num_threads() << " thread(s)"
            << std::endl;
  const int64_t memory_before = process_memory().now;
  const TrainingState& state = trainer.state;
  Progress progress(std::cerr, isatty(STDERR_FILENO) == 1, settings.training.epochs,
                    trainer.steps_per_epoch(), state.result.seconds + state.epoch_seconds);
  const std::string checkpoint = checkpoint_path(settings.output);
  const auto save = [&] { save_run(checkpoint, settings, forecaster, trainer, data_fingerprint); };
  watch_for_interrupts();
  const bool finished = trainer.run(progress, interrupted, [&] {
    if (!settings.output.checkpoint.empty()) save();
  });
  if (!finished) {
    progress.end_line();
    save();
    std::cerr << "Interrupted in epoch " << state.epoch << " after step " << state.step << " of "
              << trainer.steps_per_epoch() << ". To go on:\n  flash_train resume " << checkpoint
              << std::endl;
    return kInterruptedExitCode;
  }
  finish({.settings = settings,
          .forecaster = forecaster,
          .series = data.series,
          .test_windows = test_windows,
          .training = trainer.state.result,
          .memory_before_bytes = memory_before});
  return 0;
}

}  // namespace

int run_training(const Settings& settings) {
  Settings resolved = settings;
  // The sums of floating-point numbers, and so the weights, depend on it.
  if (resolved.threads == 0) resolved.threads = at::get_num_threads();
  return train(resolved, nullptr);
}

int run_resumed_training(const Settings& settings) {
  const RunFile run = read_run(settings.input);
  Settings stored = run.settings;
  if (stored.output.checkpoint.empty() && stored.output.model.empty()) {
    stored.output.checkpoint = settings.input;
  }
  return train(stored, &run);
}

}  // namespace flash::models
