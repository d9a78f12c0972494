#pragma once
// Forecast errors, of a model and of the forecasts that need none.

#include <flash_attention/models/patchtst.h>

#include <string>
#include <vector>

#include "data/csv_dataset.h"
#include "data/scaler.h"

namespace flash::models {

/// Mean errors over all windows, steps and columns, on the standardised scale.
struct Errors {
  double mae;
  double mse;
};

/// One column's mean absolute errors in its own units.
struct ColumnErrors {
  std::string column;
  double model;
  double naive;
  double seasonal_naive;
};

struct Evaluation {
  int64_t windows;
  Errors model;
  Errors naive;           ///< the last value goes on
  Errors seasonal_naive;  ///< the last season repeats
  std::vector<ColumnErrors> columns;
};

/// past [B, L, 1] -> the last value, horizon times: [B, horizon].
at::Tensor naive_forecast(const at::Tensor& past, int64_t horizon);

/// past [B, L, 1] -> the last `season` values over and over: [B, horizon]. Needs season <= L.
at::Tensor seasonal_naive_forecast(const at::Tensor& past, int64_t horizon, int64_t season);

/// The model's mean absolute error over all windows; puts it into eval mode.
double mean_absolute_error(PatchTST& model, const WindowDataset& windows);

/// All errors over all windows; puts the model into eval mode.
Evaluation evaluate(PatchTST& model, const WindowDataset& windows, const CsvTable& table,
                    const Scaler& scaler, int64_t season);

/// Writes truth and forecasts in original units, one after the other over the whole of `windows`
/// without overlap. Throws c10::ValueError if the file cannot be written.
void write_forecast_csv(const std::string& path, PatchTST& model, const WindowDataset& windows,
                        const CsvTable& table, const Scaler& scaler, int64_t season);

}  // namespace flash::models
