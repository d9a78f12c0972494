#pragma once
// A small training with its data, set up as in flash_train.

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "train/loop/progress.h"
#include "train/loop/trainer.h"
#include "train/output/run_file.h"
#include "train/output/table_forecaster.h"
#include "train/prepared_data.h"

namespace flash::tests {

using models::PreparedData;
using models::Progress;
using models::Series;
using models::Settings;
using models::TableForecaster;
using models::TimeSplit;
using models::Trainer;
using models::TrainingResult;
using models::WindowDataset;

/// Two noisy waves of 120 rows.
inline std::vector<Series> waves() {
  torch::manual_seed(11);
  const torch::Tensor time = torch::arange(120.0);
  const torch::Tensor values =
      torch::stack({torch::sin(time * 0.5), torch::cos(time * 0.3)}) + 0.1 * torch::randn({2, 120});
  std::vector<Series> panel;
  const auto axis = std::make_shared<models::TimeAxis>();
  axis->lines.resize(120);
  for (int64_t i = 0; i < 2; ++i) {
    panel.push_back({.name = i == 0 ? "a" : "b",
                     .axis = axis,
                     .known = 120,
                     .values = values.slice(0, i, i + 1).to(torch::kDouble),
                     .stat = torch::zeros({0}, torch::kDouble)});
  }
  return panel;
}

/// A small network of any class on those waves.
inline Settings quick_settings(const std::string& model_class = "PatchTST") {
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

inline bool never() { return false; }

/// A forecaster with its data and its trainer, set up as in flash_train.
class Session {
 public:
  explicit Session(const Settings& settings_)
      : settings(settings_),
        forecaster(make(settings_)),
        data(models::prepare_training(waves(), forecaster)),
        train_windows(models::windows_of(data, data.part(&TimeSplit::train), forecaster)),
        validation_windows(models::windows_of(data, data.part(&TimeSplit::validation), forecaster)),
        processes(models::single_process()),
        trainer(forecaster, train_windows, validation_windows, settings.training, *processes) {
    torch::manual_seed(settings.training.seed);  // because waves() draws random numbers
  }

  bool run(
      const std::function<bool()>& interrupted = never,
      const std::function<void(bool)>& after_epoch = [](bool) {}) {
    std::ostringstream ignored;
    Progress progress(ignored, false, settings.training.epochs, trainer.steps_per_epoch());
    return trainer.run(progress, interrupted, after_epoch);
  }
  const TrainingResult& result() const { return trainer.state.result; }
  void save(const std::string& path) const {
    models::save_run(path, settings, forecaster, trainer, models::fingerprint(data));
  }
  void restore(const std::string& path) {
    models::restore_run(models::read_run(path), forecaster, trainer, models::fingerprint(data));
  }

  Settings settings;
  TableForecaster forecaster;
  PreparedData data;
  WindowDataset train_windows, validation_windows;
  std::unique_ptr<models::Processes> processes;
  Trainer trainer;

 private:
  static TableForecaster make(const Settings& settings) {
    torch::manual_seed(settings.training.seed);
    return models::make_forecaster(settings.data, settings.model, settings.loss, 2);
  }
};

}  // namespace flash::tests
