#pragma once
// The quantiles of a loss, neuralforecast's names for them, and checks that losses share.

#include <flash_attention/models/losses.h>

#include <string>
#include <vector>

namespace flash::models {

struct Columns {
  std::vector<double> quantiles;   ///< rounded to float32, as neuralforecast keeps them
  std::vector<std::string> names;  ///< "-median", "-lo-90", ...
};

/// From options.quantiles() in their order, or else from options.level(): the median, then the
/// bounds in ascending order. Throws c10::ValueError, beginning with `loss`, if one is out of range
/// or given twice.
Columns quantile_columns(const std::string& loss, const LossOptions& options);

/// Throws c10::ValueError unless there is at least one quantile, all are in (0, 1), and no two are
/// equal.
void check_quantiles(const std::string& loss, const std::vector<double>& quantiles);

/// Throws c10::TypeError unless both are float32 or both are float64.
void check_dtypes(const std::string& loss, const at::Tensor& y, const at::Tensor& y_hat);

/// The shortest decimal that parses to `value`: "80" for 80, or "80.0" with keep_point.
std::string decimal(double value, bool keep_point);

}  // namespace flash::models
