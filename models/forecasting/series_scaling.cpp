#include "forecasting/series_scaling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "message_text.h"

namespace flash::models {
namespace {

/// Of sorted values [rows, columns], by linear interpolation: [columns]. at::quantile takes no more
/// than 16 million elements.
at::Tensor interpolated(const at::Tensor& sorted, double q) {
  const double position = q * static_cast<double>(sorted.size(0) - 1);
  const auto below = static_cast<int64_t>(position);
  const int64_t above = std::min(below + 1, sorted.size(0) - 1);
  return at::lerp(sorted[below], sorted[above], position - static_cast<double>(below));
}

at::Tensor sorted(const at::Tensor& values) { return std::get<0>(values.sort(0)); }

std::vector<double> to_vector(const at::Tensor& tensor) {
  const at::Tensor numbers = tensor.contiguous();
  return {numbers.const_data_ptr<double>(), numbers.const_data_ptr<double>() + numbers.numel()};
}

/// Shift and spread, float64 [columns].
std::pair<at::Tensor, at::Tensor> statistics(const std::string& type, const at::Tensor& values) {
  if (type == "standard") {
    const at::Tensor mean = values.mean(0);
    return {mean, (values - mean).square().mean(0).sqrt()};
  }
  if (type == "minmax") {
    const at::Tensor low = values.amin(0);
    return {low, values.amax(0) - low};
  }
  const at::Tensor ordered = sorted(values);
  const at::Tensor middle = interpolated(ordered, 0.5);
  if (type == "robust") return {middle, interpolated(sorted((values - middle).abs()), 0.5)};
  return {middle, interpolated(ordered, 0.75) - interpolated(ordered, 0.25)};
}

}  // namespace

void check_local_scaler(const std::string& option, const std::string& type) {
  TORCH_CHECK_VALUE(type.empty() || type == "standard" || type == "robust" ||
                        type == "robust-iqr" || type == "minmax",
                    "Forecaster: expected ", option,
                    " to be standard, robust, robust-iqr, minmax or none, got ", excerpt(type));
}

ColumnScaling fit_local_scaler(const std::string& type, const at::Tensor& values) {
  if (type.empty()) return {};
  auto [shift, spread] = statistics(type, values);
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  spread = spread.masked_fill(spread < kEpsilon, 1.0);
  return {.shift = to_vector(shift), .spread = to_vector(spread)};
}

}  // namespace flash::models
