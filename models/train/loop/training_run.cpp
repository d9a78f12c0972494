#include "train/loop/training_run.h"

#include <torch/torch.h>
#include <unistd.h>

#include <iostream>

#include "train/command/settings_json.h"
#include "train/loop/best_model.h"
#include "train/loop/interrupt.h"
#include "train/output/outputs.h"
#include "train/output/results.h"
#include "train/output/run_file.h"
#include "train/prepared_data.h"
#include "train/run.h"

namespace flash::models {
namespace {

/// Test-writes every output under another name, before there is anything to lose.
void rehearse_writing(const Settings& settings, const TableForecaster& forecaster,
                      const Trainer& trainer, const std::string& data_fingerprint) {
  rehearse(checkpoint_path(settings.output), [&](const std::string& path) {
    save_run(path, settings, forecaster, trainer, data_fingerprint);
  });
  rehearse(best_model_path(settings.output),
           [&](const std::string& path) { save_forecaster(path, forecaster); });
}

/// The inputs and outputs of a training.
struct TrainingParts {
  const Settings& settings;
  TableForecaster& forecaster;
  const PreparedData& data;
  const WindowDataset& test_windows;
  Trainer& trainer;
  const std::string& data_fingerprint;
  Processes& processes;

  void save(const std::string& path) const {
    const HoldInterrupts hold;
    save_run(path, settings, forecaster, trainer, data_fingerprint);
  }
};

/// Called after each epoch. A full disk does not end the training.
void save_epoch(const TrainingParts& parts, BestModel& best, bool is_best) {
  if (!parts.processes.first()) return;
  if (is_best) best.keep(parts.forecaster, parts.trainer.state.result.best_epoch);
  if (parts.settings.output.checkpoint.empty()) return;
  try {
    parts.save(parts.settings.output.checkpoint);
  } catch (const c10::Error& error) {
    std::cerr << "flash_train: " << error.what_without_backtrace()
              << "; the training goes on without this checkpoint" << std::endl;
  }
}

int save_interrupted(const TrainingParts& parts, const BestModel& best) {
  if (!parts.processes.first()) return kInterruptedExitCode;
  const HoldInterrupts hold;  // the user should see how to resume
  const std::string path = checkpoint_path(parts.settings.output);
  parts.save(path);
  std::cerr << "Interrupted in epoch " << parts.trainer.state.epoch << " after step "
            << parts.trainer.state.step << " of " << parts.trainer.steps_per_epoch()
            << ". To go on:\n  flash_train resume " << path << std::endl;
  if (const std::string where = best.where(); !where.empty()) {
    std::cerr << "Until then " << where << std::endl;
  }
  return kInterruptedExitCode;
}

void write_results(const TrainingParts& parts, BestModel& best, int64_t memory_before) {
  if (!parts.processes.first()) return stop_watching_for_interrupts();
  OutputWriter writer;
  // First of all, because what follows may fail, and the trained weights must be safe by then.
  writer.write("Model", parts.settings.output.model,
               [&] { best.finish(parts.forecaster, parts.trainer.state.result.best_epoch); });
  stop_watching_for_interrupts();
  finish({.settings = parts.settings,
          .forecaster = parts.forecaster,
          .series = parts.data.series,
          .test_windows = parts.test_windows,
          .training = parts.trainer.state.result,
          .memory_before_bytes = memory_before},
         writer);
}

/// BestModel::rescue by the process that writes files; "" from the others.
std::string rescue(const TrainingParts& parts, BestModel& best) {
  return parts.processes.first() ? best.rescue(parts.forecaster, parts.trainer.state) : "";
}

/// Trains from the trainer's current position to the end or to an interrupt. Exceptions say where
/// the best weights are.
int train_to_the_end(const TrainingParts& parts, bool resumed) {
  const int64_t memory_before = process_memory().now;
  const TrainingState& state = parts.trainer.state;
  std::ostream nowhere(nullptr);
  Progress progress(parts.processes.first() ? std::cerr : nowhere, isatty(STDERR_FILENO) == 1,
                    parts.settings.training.epochs, parts.trainer.steps_per_epoch(),
                    state.result.seconds + state.epoch_seconds);
  BestModel best(parts.settings.output, resumed);
  try {
    const bool finished = parts.trainer.run(
        progress, interrupted, [&](bool is_best) { save_epoch(parts, best, is_best); });
    progress.end_line();
    if (!finished) return save_interrupted(parts, best);
    write_results(parts, best, memory_before);
    return 0;
  } catch (c10::Error& error) {
    progress.end_line();
    const std::string where = rescue(parts, best);
    if (!where.empty()) error.add_context(where);
    throw;
  } catch (const std::exception& error) {  // for example out of memory
    progress.end_line();
    const std::string where = rescue(parts, best);
    TORCH_CHECK(false, error.what(), where.empty() ? where : " (" + where + ")");
  }
}

/// What must be the same on every process: options, data, and the position in the training.
std::string identity(const Settings& settings, const Trainer& trainer,
                     const std::string& data_fingerprint) {
  Settings shared = settings;
  shared.csv.clear();  // machines may keep the table in different folders
  shared.output = {};  // and only the first process writes
  shared.threads = 0;
  return nlohmann::json(shared).dump() + data_fingerprint +
         c10::str(" epoch ", trainer.state.epoch, " step ", trainer.state.step);
}

/// Resumes `run` unless it is null.
int train(const Settings& settings, const RunFile* run, Processes& processes,
          StartTogether& start) {
  if (processes.first()) check_outputs(settings);
  check_season(settings.data.season, settings.model.input_size);
  if (settings.threads > 0) at::set_num_threads(settings.threads);
  std::vector<Series> series = read_panel(settings.csv, settings.data.columns);
  if (processes.first()) series = announced(std::move(series));
  // Checked before a model is built whose sizes no table has enough rows for.
  split_panel(series, settings.data.split, settings.model);
  torch::manual_seed(settings.training.seed);
  TableForecaster forecaster = make_forecaster(
      settings.data, settings.model, settings.loss, static_cast<int64_t>(series.size()),
      run ? limit_of_file(run->file.tensors) : limit_of_machine());
  forecaster.batch_size = settings.training.batch_size;
  // Seeded again, so that dropout does not depend on the random numbers of the construction.
  torch::manual_seed(settings.training.seed);
  const PreparedData data = prepare_training(std::move(series), forecaster);
  const WindowDataset train_windows = windows_of(data, data.part(&TimeSplit::train), forecaster);
  const WindowDataset validation_windows =
      windows_of(data, data.part(&TimeSplit::validation), forecaster);
  const WindowDataset test_windows = windows_of(data, data.part(&TimeSplit::test), forecaster);
  Trainer trainer(forecaster, train_windows, validation_windows, settings.training, processes);
  const std::string data_fingerprint = fingerprint(data);
  if (run != nullptr) restore_run(*run, forecaster, trainer, data_fingerprint);
  start.agree();
  processes.check_same(identity(settings, trainer, data_fingerprint), "options and table");
  const TrainingParts parts{.settings = settings,
                            .forecaster = forecaster,
                            .data = data,
                            .test_windows = test_windows,
                            .trainer = trainer,
                            .data_fingerprint = data_fingerprint,
                            .processes = processes};
  watch_for_interrupts();
  if (!processes.first()) return train_to_the_end(parts, run != nullptr);
  rehearse_writing(settings, forecaster, trainer, data_fingerprint);

  std::cout << (run == nullptr ? "Training " : "Resuming the training of ")
            << settings.model.model_class << " on " << train_windows.size() << " windows of "
            << data.series.size() << " series, " << forecaster.parameter_count() << " parameters, "
            << settings.model.attention << " attention, " << at::get_num_threads() << " thread(s)"
            << (processes.alone()
                    ? ""
                    : " on each of " + std::to_string(processes.count()) + " processes")
            << std::endl;
  return train_to_the_end(parts, run != nullptr);
}

}  // namespace

int run_training(const Settings& settings, Processes& processes) {
  Settings resolved = settings;
  // Floating-point sums, and so the weights, depend on the number of threads.
  if (resolved.threads == 0) resolved.threads = at::get_num_threads();
  StartTogether start(processes);
  return train(resolved, nullptr, processes, start);
}

int run_resumed_training(const Settings& settings, Processes& processes) {
  StartTogether start(processes);
  const RunFile run = read_run(settings.input);
  Settings stored = run.settings;
  if (stored.output.checkpoint.empty() && stored.output.model.empty()) {
    stored.output.checkpoint = settings.input;
  }
  return train(stored, &run, processes, start);
}

}  // namespace flash::models
