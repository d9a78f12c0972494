#pragma once
// Scaled series and their windows, ready for a model.

#include <memory>
#include <string>
#include <vector>

#include "data/panel.h"
#include "data/window_dataset.h"
#include "train/output/table_forecaster.h"

namespace flash::models {

struct PreparedData {
  std::vector<Series> series;
  std::vector<TimeSplit> splits;  ///< of each series; empty for forecasts beyond the end
  std::shared_ptr<const SeriesStore> store;

  std::vector<RowRange> part(RowRange TimeSplit::*which) const;
};

/// Training, validation and test rows of each series. Throws c10::ValueError if a series is too
/// short.
std::vector<TimeSplit> split_panel(const std::vector<Series>& panel, const SplitSettings& settings,
                                   const ModelSettings& model);

/// Splits the series and fits the scalers of `forecaster` to their training parts.
PreparedData prepare_training(std::vector<Series> series, TableForecaster& forecaster);

/// Splits the series and applies the scalers of `forecaster`. Throws c10::ValueError for a series
/// that it was not trained on. Like the other two functions, throws it also for values that leave
/// float32's range by scaling and for a multivariate model whose series have different times.
PreparedData prepare_evaluation(std::vector<Series> series, const TableForecaster& forecaster);

/// For series from read_open_panel. Throws c10::ValueError also if a series is shorter than the
/// model's input.
PreparedData prepare_forecast(std::vector<Series> series, const TableForecaster& forecaster);

/// The windows whose future lies in these rows.
WindowDataset windows_of(const PreparedData& data, const std::vector<RowRange>& rows,
                         const TableForecaster& forecaster);
/// The last window of each series.
WindowDataset last_windows(const PreparedData& data, const TableForecaster& forecaster);

/// A hash of the scaled values, the names of the series and the times.
std::string fingerprint(const PreparedData& data);

}  // namespace flash::models
