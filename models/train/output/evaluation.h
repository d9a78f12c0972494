#pragma once
// Forecast errors of a model and of naive forecasts.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/output/table_forecaster.h"
#include "train/prepared_data.h"
#include "train/processes.h"

namespace flash::models {

/// Mean errors over all windows, steps and series, on the standardised scale.
struct Errors {
  double mae;
  double mse;
};

/// Mean absolute errors of one series in its own units.
struct SeriesErrors {
  std::string name;
  double model;
  double naive;
  double seasonal_naive;
};

/// The fraction of true values inside an interval that should contain `level` percent of them.
struct Coverage {
  std::string level;  ///< as in the names of the forecast's columns
  double share;
};

struct Evaluation {
  int64_t windows;
  Errors model;           ///< of median (absolute) and mean (squared), if the loss has both
  Errors naive;           ///< repeats the last value
  Errors seasonal_naive;  ///< repeats the last season
  std::vector<Coverage> coverage;
  std::vector<SeriesErrors> series;
};

/// The roles of a forecast's columns.
struct ForecastColumns {
  /// From Loss::output_names(). A missing median or mean is replaced by the other, or by the first
  /// column if both are missing.
  explicit ForecastColumns(const std::vector<std::string>& names);

  struct Interval {
    std::string level;
    int64_t low;
    int64_t high;
  };
  int64_t median = 0;
  int64_t mean = 0;
  std::vector<Interval> intervals;  ///< widest first
};

/// past [B, L, N] -> the last value, horizon times: [B, horizon, N].
at::Tensor naive_forecast(const at::Tensor& past, int64_t horizon);

/// past [B, L, N] -> the last `season` values, repeated: [B, horizon, N]. Requires season <= L.
at::Tensor seasonal_naive_forecast(const at::Tensor& past, int64_t horizon, int64_t season);

/// Indices 0, 1, ... in batches of `batch_size`.
std::vector<at::Tensor> batches(const at::Tensor& indices, int64_t batch_size);

/// Mean loss and errors over all windows, computed in batches, of which each process computes some;
/// puts the model into evaluation mode. nullopt if this process is alone and `interrupted` returns
/// true between two batches.
struct ValidationErrors {
  double loss;
  Errors errors;
};
std::optional<ValidationErrors> validate(
    const TableForecaster& forecaster, const WindowDataset& windows, int64_t batch_size,
    Processes& processes, const std::function<bool()>& interrupted = [] { return false; });

/// All errors over all windows; puts the model into evaluation mode. Seeds torch's generator,
/// because Informer draws random numbers in evaluation mode too, and does not restore it.
Evaluation evaluate(const TableForecaster& forecaster, const WindowDataset& windows,
                    const std::vector<Series>& series, int64_t batch_size);

}  // namespace flash::models
