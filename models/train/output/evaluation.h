#pragma once
// Forecast errors, of a model and of the forecasts that need none.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/output/forecaster.h"
#include "train/prepared_data.h"

namespace flash::models {

/// Mean errors over all windows, steps and series, on the standardised scale.
struct Errors {
  double mae;
  double mse;
};

/// One series' mean absolute errors in its own units.
struct SeriesErrors {
  std::string name;
  double model;
  double naive;
  double seasonal_naive;
};

/// How many of the true values were inside of an interval that should hold `level` percent.
struct Coverage {
  std::string level;  ///< as in the names of the forecast's columns
  double share;
};

struct Evaluation {
  int64_t windows;
  Errors model;           ///< of median (absolute) and mean (squared), where the loss gives both
  Errors naive;           ///< the last value goes on
  Errors seasonal_naive;  ///< the last season repeats
  std::vector<Coverage> coverage;
  std::vector<SeriesErrors> series;
};

/// Which columns of a forecast are what.
struct ForecastColumns {
  /// From Loss::output_names(). Without a median or a mean the other one stands for it, without
  /// both the first column.
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

/// past [B, L, N] -> the last `season` values over and over: [B, horizon, N]. Needs season <= L.
at::Tensor seasonal_naive_forecast(const at::Tensor& past, int64_t horizon, int64_t season);

/// Indices in order, `batch_size` at a time.
std::vector<at::Tensor> batches(const at::Tensor& indices, int64_t batch_size);

/// Mean loss and errors over all windows, in batches; puts the model into evaluation mode. Nothing
/// if `interrupted` says so between two batches.
struct ValidationErrors {
  double loss;
  Errors errors;
};
std::optional<ValidationErrors> validate(
    const Forecaster& forecaster, const WindowDataset& windows, int64_t batch_size,
    const std::function<bool()>& interrupted = [] { return false; });

/// All errors over all windows; puts the model into evaluation mode. Draws the same random numbers
/// each time, of which Informer needs some even then, and leaves the generator there.
Evaluation evaluate(const Forecaster& forecaster, const WindowDataset& windows,
                    const std::vector<Series>& series, int64_t batch_size);

}  // namespace flash::models
