#pragma once
// Standardisation of columns.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// Each column's mean and deviation, float64 [columns]; measured on the training part, so that
/// nothing of the future leaks into it.
struct ColumnScaler {
  at::Tensor mean;
  at::Tensor deviation;

  /// values [columns, rows] -> mean 0 and deviation 1 over those rows. A constant column keeps its
  /// spread (deviation 1), since it has none to divide by.
  static ColumnScaler fit(const at::Tensor& values);

  /// Mean 0 and deviation 1, which changes nothing.
  static ColumnScaler identity(int64_t columns);

  /// values [columns, rows] -> float64 of the same shape.
  at::Tensor transform(const at::Tensor& values) const;
  /// Back to the original units.
  at::Tensor inverse(const at::Tensor& scaled) const;
};

}  // namespace flash::models
