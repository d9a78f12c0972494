#pragma once
// What the user of flash_train asked for.

#include <cstdint>
#include <string>
#include <vector>

#include "data/panel.h"
#include "data/time_split.h"

namespace flash::models {

/// What of a table is for what, and what to compare with: stored with a model, as its test error
/// depends on it.
struct DataSettings {
  PanelColumns columns;
  SplitSettings split;
  std::string table_scaler = "standard";  ///< or "none"
  int64_t season = 7;                     ///< rows per season of the seasonal-naive forecast
};

/// The defaults suit daily tables of a few years: a year of history, two weeks ahead.
struct ModelSettings {
  std::string model_class;
  std::string options = "{}";  ///< the model's own, a JSON object as make_model takes it
  int64_t input_size = 365;
  int64_t horizon = 14;
  std::string attention;  ///< "flash", "standard" or, for Autoformer and FEDformer, "native"
  int64_t block_size = 64;
  bool gradient_checkpointing = false;
};

struct LossSettings {
  std::string name = "MAE";  ///< of a loss, or of a distribution
  std::vector<double> level = {80, 90};
  std::vector<double> quantiles;
  double q = 0.5;
  double delta = 1.0;
  std::string scaler_type = "identity";  ///< of windows
};

struct TrainingSettings {
  int64_t epochs = 10;
  int64_t patience = 0;  ///< epochs without a better one before stopping; 0: never stop
  int64_t batch_size = 64;
  double learning_rate = 5e-4;
  double decay = 1.0;       ///< factor of the learning rate after each epoch beyond decay_after
  int64_t decay_after = 3;  ///< epochs at the full rate
  uint64_t seed = 1;
};

struct OutputSettings {
  std::string model;
  std::string checkpoint;
  std::string forecast_csv;
  std::string forecast_png;
  std::string report;
};

struct Settings {
  enum class Command { kTrain, kEvaluate, kPredict, kResume };

  Command command = Command::kTrain;
  std::string csv;
  std::string input;  ///< the model or checkpoint to begin with, where the command takes one
  bool season_given = false;
  bool batch_size_given = false;
  DataSettings data;
  ModelSettings model;
  LossSettings loss;
  TrainingSettings training;
  OutputSettings output;
  int threads = 0;  ///< 0: torch's default
};

}  // namespace flash::models
