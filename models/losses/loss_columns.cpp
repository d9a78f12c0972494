#include "losses/loss_columns.h"

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace flash::models {
namespace {

void check_given_once(const std::string& loss, const char* what, std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto twice = std::adjacent_find(values.begin(), values.end());
  TORCH_CHECK_VALUE(twice == values.end(), loss, ": expected each ", what, " once, got ", *twice,
                    " twice");
}

/// The width, in percent, of the interval that a quantile bounds, as NumPy prints it.
std::string rounded_percent(double percent) {
  return decimal(std::nearbyint(percent * 100.0) / 100.0, /*keep_point=*/true);
}

Columns from_quantiles(const std::vector<double>& quantiles) {
  Columns columns;
  for (const double q : quantiles) {
    columns.quantiles.push_back(static_cast<float>(q));
    columns.names.push_back(q < 0.5   ? "-lo-" + rounded_percent(100.0 - 200.0 * q)
                            : q > 0.5 ? "-hi-" + rounded_percent(100.0 - 200.0 * (1.0 - q))
                                      : "-median");
  }
  return columns;
}

Columns from_level(std::vector<double> level) {
  Columns columns{.quantiles = {0.5}, .names = {"-median"}};
  const auto add = [&](double percent, const std::string& name) {
    columns.quantiles.push_back(static_cast<float>(percent) / 100.0F);
    columns.names.push_back(name);
  };
  std::sort(level.rbegin(), level.rend());
  for (const double l : level) add(50.0 - l / 2.0, "-lo-" + decimal(l, false));
  std::reverse(level.begin(), level.end());
  for (const double l : level) add(50.0 + l / 2.0, "-hi-" + decimal(l, false));
  return columns;
}

}  // namespace

std::string decimal(double value, bool keep_point) {
  std::array<char, 400> text;  // the longest fixed notation of a double has 310 digits
  const auto end =
      std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed).ptr;
  std::string written(text.data(), end);
  if (keep_point && written.find('.') == std::string::npos) written += ".0";
  return written;
}

void check_quantiles(const std::string& loss, const std::vector<double>& quantiles) {
  TORCH_CHECK_VALUE(!quantiles.empty(), loss, ": expected at least one quantile");
  for (const double q : quantiles) {
    TORCH_CHECK_VALUE(
        q > 0.0 && q < 1.0, loss, ": expected quantiles between 0 and 1, got ", q,
        q >= 1.0 && q < 100.0 ? c10::str("; write ", q / 100.0, " for ", q, " %") : std::string());
  }
  check_given_once(loss, "quantile", quantiles);
}

Columns quantile_columns(const std::string& loss, const LossOptions& options) {
  if (!options.quantiles().empty()) {
    check_quantiles(loss, options.quantiles());
    return from_quantiles(options.quantiles());
  }
  for (const double l : options.level()) {
    TORCH_CHECK_VALUE(l > 0.0 && l < 100.0, loss,
                      ": expected levels in percent, between 0 and 100, got ", l);
  }
  check_given_once(loss, "level", options.level());
  return from_level(options.level());
}

void check_dtypes(const std::string& loss, const at::Tensor& y, const at::Tensor& y_hat) {
  TORCH_CHECK_TYPE(y.scalar_type() == y_hat.scalar_type() &&
                       (y.scalar_type() == at::kFloat || y.scalar_type() == at::kDouble),
                   loss, ": expected y and the forecast both float32 or both float64, got ",
                   y.scalar_type(), " and ", y_hat.scalar_type());
}

}  // namespace flash::models
