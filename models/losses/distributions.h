#pragma once
// The distributions of DistributionLoss: parameters, likelihood, mean and quantiles.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace flash::models {

using Tensors = std::vector<at::Tensor>;

/// Parameters and values are [B, h, N], all of the same floating-point dtype.
class Distribution {
 public:
  virtual ~Distribution() = default;

  virtual const char* name() const = 0;
  /// neuralforecast's suffixes for the columns of the M parameters.
  virtual std::vector<std::string> parameter_names() const = 0;

  /// Raw parameters -> parameters on the scale of the windows. loc and scale broadcast to [B, h,
  /// N], or both are undefined for 0 and 1.
  virtual Tensors scale_decouple(const Tensors& raw, const at::Tensor& loc,
                                 const at::Tensor& scale) const = 0;
  /// Throws c10::ValueError if a parameter is out of range, for ranges that scale_decouple does not
  /// guarantee.
  virtual void check_parameters(const Tensors&) const {}

  /// The values that have a likelihood: a description, and a test of each element of `y`.
  virtual const char* support() const { return "a number"; }
  virtual at::Tensor in_support(const at::Tensor& y) const { return y == y; }

  virtual at::Tensor log_prob(const Tensors& parameters, const at::Tensor& y) const = 0;
  virtual at::Tensor mean(const Tensors& parameters) const = 0;
  /// The smallest value with P(X <= value) >= q, for q in (0, 1); parameters are float64.
  virtual at::Tensor quantile(const Tensors& parameters, double q) const = 0;
};

/// Sorted by name.
const std::vector<const Distribution*>& distributions();

}  // namespace flash::models
