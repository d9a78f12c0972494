#pragma once
// Forecasts in the units of the table, for CSV files and pictures.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "train/prepared_data.h"

namespace flash::models {

struct SeriesForecast {
  std::string name;
  std::vector<std::string> labels;  ///< time of each row
  at::Tensor past;                  ///< float64: the input of the first forecast
  at::Tensor truth;                 ///< float64 [rows]; undefined if unknown
  at::Tensor forecast;              ///< float64 [rows, columns]
  at::Tensor naive;                 ///< float64 [rows]
  at::Tensor seasonal_naive;        ///< float64 [rows]
};

struct ForecastTable {
  std::vector<std::string> columns;  ///< Loss::output_names()
  int64_t horizon;                   ///< rows per forecast
  std::vector<SeriesForecast> series;
};

/// Consecutive forecasts without overlap over all of `windows`.
ForecastTable forecast_windows(const TableForecaster& forecaster, const WindowDataset& windows,
                               const std::vector<Series>& series, bool truth_is_known,
                               int64_t batch_size);

/// Throws c10::ValueError if the file cannot be written.
void write_forecast_csv(const std::string& path, const ForecastTable& table);

}  // namespace flash::models
