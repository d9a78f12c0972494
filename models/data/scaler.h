#pragma once
// Standardisation of columns.

#include <ATen/core/Tensor.h>

namespace flash::models {

/// Each column's mean and deviation, float64 [columns]. Fitted to the training rows, so that
/// nothing leaks from the future.
struct ColumnScaler {
  at::Tensor mean;
  at::Tensor deviation;

  /// The scaler that gives values [columns, rows] mean 0 and deviation 1. The deviation of a
  /// constant column counts as 1.
  static ColumnScaler fit(const at::Tensor& values);

  /// Mean 0 and deviation 1, which changes no value.
  static ColumnScaler identity(int64_t columns);

  /// values [columns, rows] -> float64 of the same shape.
  at::Tensor transform(const at::Tensor& values) const;
  /// Back to the original units.
  at::Tensor inverse(const at::Tensor& scaled) const;
};

}  // namespace flash::models
