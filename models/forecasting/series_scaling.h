#pragma once
// Scaling of whole series, before windows are taken.

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace flash::models {

/// Shift and spread of each column: scaled = (value - shift) / spread. Empty: unchanged.
struct ColumnScaling {
  std::vector<double> shift;
  std::vector<double> spread;

  bool empty() const { return shift.empty(); }
};

/// What a file says about the scaling of whole series.
struct SeriesScaling {
  /// Fitted in the training, by the name of the series: target, futr_exog, hist_exog.
  std::map<std::string, ColumnScaling> by_name;
  ColumnScaling stat;
  /// neuralforecast's scalers, which are fitted to what is forecast; empty for none.
  std::string local_type;
  std::string local_static_type;
};

/// Throws c10::ValueError unless `type` is empty, "standard", "robust", "robust-iqr" or "minmax".
/// `option` is its name in messages.
void check_local_scaler(const std::string& option, const std::string& type);

/// The scaling of values [rows, columns], float64, of each column:
///     standard     mean, standard deviation (divided by n)
///     robust       median, median absolute deviation
///     robust-iqr   median, distance between the quartiles
///     minmax       minimum, maximum - minimum
/// A spread below float32's epsilon counts as 1, as in coreforecast.
ColumnScaling fit_local_scaler(const std::string& type, const at::Tensor& values);

}  // namespace flash::models
