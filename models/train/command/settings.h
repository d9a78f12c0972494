#pragma once
// The settings of a run of flash_train.

#include <cstdint>
#include <string>
#include <vector>

#include "data/panel.h"
#include "data/time_split.h"

namespace flash::models {

/// Roles of the columns, split and baseline. Stored with a model, because its test error depends on
/// them.
struct DataSettings {
  PanelColumns columns;
  SplitSettings split;
  std::string table_scaler = "standard";  ///< or "none"
  int64_t season = 7;                     ///< rows per season of the seasonal-naive forecast
};

/// The defaults suit daily tables of a few years: a year of history, two weeks ahead.
struct ModelSettings {
  std::string model_class;
  std::string options = "{}";  ///< the model's options as a JSON object, for make_model
  int64_t input_size = 365;
  int64_t horizon = 14;
  std::string attention;  ///< "flash", "standard" or, for Autoformer and FEDformer, "native"
  int64_t block_size = 64;
  bool gradient_checkpointing = false;
};

struct LossSettings {
  std::string name = "MAE";  ///< a loss or a distribution
  std::vector<double> level = {80, 90};
  std::vector<double> quantiles;
  double q = 0.5;
  double delta = 1.0;
  std::string scaler_type = "identity";  ///< the window scaler
};

struct TrainingSettings {
  int64_t epochs = 10;
  int64_t patience = 0;  ///< stop after so many epochs without improvement; 0: never
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
  std::string input;  ///< the model or checkpoint to start from, for commands that have one
  bool season_given = false;
  bool batch_size_given = false;
  DataSettings data;
  ModelSettings model;
  LossSettings loss;
  TrainingSettings training;
  OutputSettings output;
  int threads = 0;  ///< 0 for torch's default
};

}  // namespace flash::models
