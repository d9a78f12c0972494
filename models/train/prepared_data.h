#pragma once
// A table ready for a model: series, scaled, and their windows.

#include <memory>
#include <string>
#include <vector>

#include "data/panel.h"
#include "data/window_dataset.h"
#include "train/output/forecaster.h"

namespace flash::models {

struct PreparedData {
  std::vector<Series> series;
  std::vector<TimeSplit> splits;  ///< of each series; none for forecasts beyond the end
  std::shared_ptr<const SeriesStore> store;

  std::vector<RowRange> part(RowRange TimeSplit::*which) const;
};

/// Training, validation and test rows of each series. Throws c10::ValueError where one is too
/// short.
std::vector<TimeSplit> split_panel(const std::vector<Series>& panel, const SplitSettings& settings,
                                   const ModelSettings& model);

/// Cuts the series and measures the scalers of `forecaster` on their training parts.
PreparedData prepare_training(std::vector<Series> series, Forecaster& forecaster);

/// Cuts the series and uses the scalers that the forecaster has. Throws c10::ValueError for a
/// series that it was not trained on, and, as the other two, for numbers that scaling takes out of
/// float32's range and for series of different times that the model sees together.
PreparedData prepare_evaluation(std::vector<Series> series, const Forecaster& forecaster);

/// Series of read_open_panel. Throws c10::ValueError also where one is shorter than the model's
/// input.
PreparedData prepare_forecast(std::vector<Series> series, const Forecaster& forecaster);

/// The windows whose future is in these rows.
WindowDataset windows_of(const PreparedData& data, const std::vector<RowRange>& rows,
                         const Forecaster& forecaster);
/// The one window at the end of each series.
WindowDataset last_windows(const PreparedData& data, const Forecaster& forecaster);

/// A number that changes with the scaled values, the names of the series and the times.
std::string fingerprint(const PreparedData& data);

}  // namespace flash::models
