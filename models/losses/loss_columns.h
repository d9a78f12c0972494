#pragma once
// Which quantiles a loss forecasts, what neuralforecast calls them, and checks that losses share.

#include <flash_attention/models/losses.h>

#include <string>
#include <vector>

namespace flash::models {

struct Columns {
  std::vector<double> quantiles;   ///< rounded to float32, as neuralforecast keeps them
  std::vector<std::string> names;  ///< "-median", "-lo-90", ...
};

/// From options.quantiles() in their order, else from options.level(): the median, and then the
/// bounds in ascending order. Throws c10::ValueError, beginning with `loss`, where one is out of
/// range or given twice.
Columns quantile_columns(const std::string& loss, const LossOptions& options);

/// Throws c10::ValueError unless there is at least one quantile, each in (0, 1) and none twice.
void check_quantiles(const std::string& loss, const std::vector<double>& quantiles);

/// Throws c10::TypeError unless both have one dtype, float32 or float64.
void check_dtypes(const std::string& loss, const at::Tensor& y, const at::Tensor& y_hat);

/// The shortest decimal that reads back as `value`: 80 as "80", or with keep_point as "80.0".
std::string decimal(double value, bool keep_point);

}  // namespace flash::models
