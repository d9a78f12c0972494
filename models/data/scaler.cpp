#include "data/scaler.h"

#include <ATen/ATen.h>

namespace flash::models {

ColumnScaler ColumnScaler::fit(const at::Tensor& values) {
  const at::Tensor exact = values.to(at::kDouble);
  const at::Tensor mean = exact.mean(1);
  const at::Tensor deviation = (exact - mean.unsqueeze(1)).square().mean(1).sqrt();
  // By rounding, the deviation of a constant column can be about 1e-16 times its value.
  const at::Tensor constant = deviation <= 1e-12 * mean.abs();
  return {.mean = mean, .deviation = deviation.masked_fill(constant, 1.0)};
}

ColumnScaler ColumnScaler::identity(int64_t columns) {
  return {.mean = at::zeros({columns}, at::kDouble), .deviation = at::ones({columns}, at::kDouble)};
}

at::Tensor ColumnScaler::transform(const at::Tensor& values) const {
  return (values - mean.unsqueeze(1)) / deviation.unsqueeze(1);
}

at::Tensor ColumnScaler::inverse(const at::Tensor& scaled) const {
  return scaled * deviation.unsqueeze(1) + mean.unsqueeze(1);
}

}  // namespace flash::models
