#pragma once
// What all commands do at their beginning and at their end.

#include <optional>

#include "train/command/settings.h"
#include "train/output/forecast_table.h"
#include "train/output/outputs.h"
#include "train/output/report.h"
#include "train/prepared_data.h"

namespace flash::models {

/// Throws c10::ValueError.
void check_season(int64_t season, int64_t input_size);

/// `panel`, after its line about time has been printed.
std::vector<Series> announced(std::vector<Series> panel);

/// A model that has been trained or loaded, and what to test it on.
struct Finished {
  const Settings& settings;
  const Forecaster& forecaster;
  const std::vector<Series>& series;
  const WindowDataset& test_windows;
  std::optional<TrainingResult> training;
  int64_t memory_before_bytes;
};

/// Test error, files and the printed table: the same after training and after loading. `writer` may
/// have written the model.
void finish(const Finished& finished, OutputWriter& writer);

/// Writes CSV and picture where they are wanted.
void write_forecasts(const OutputSettings& output, const ForecastTable& table,
                     OutputWriter& writer);

}  // namespace flash::models
