#pragma once
// The first and last steps of every command.

#include <optional>

#include "train/command/settings.h"
#include "train/output/forecast_table.h"
#include "train/output/outputs.h"
#include "train/output/report.h"
#include "train/prepared_data.h"

namespace flash::models {

/// Throws c10::ValueError.
void check_season(int64_t season, int64_t input_size);

/// Prints the line about the panel's times and returns the panel.
std::vector<Series> announced(std::vector<Series> panel);

/// A trained or loaded model, and what to test it on.
struct Finished {
  const Settings& settings;
  const TableForecaster& forecaster;
  const std::vector<Series>& series;
  const WindowDataset& test_windows;
  std::optional<TrainingResult> training;
  int64_t memory_before_bytes;
};

/// Computes the test error, writes the files and prints the table, after training or loading.
/// `writer` may have written the model before.
void finish(const Finished& finished, OutputWriter& writer);

/// Writes CSV file and picture if requested.
void write_forecasts(const OutputSettings& output, const ForecastTable& table,
                     OutputWriter& writer);

}  // namespace flash::models
