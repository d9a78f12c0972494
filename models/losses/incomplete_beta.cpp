#include "losses/incomplete_beta.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

namespace flash::models {
namespace {

/// log(Gamma(x)). std::lgamma writes a global variable for the sign, which is a data race.
double log_gamma(double x) {
  int sign;
  return lgamma_r(x, &sign);
}

/// The continued fraction of I_x(a, b) (DLMF 8.17.22), by the modified Lentz method. It converges
/// fast for x < (a + 1) / (a + b + 2), in about sqrt(max(a, b)) steps.
double continued_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  constexpr int kMaximumSteps = 100000;
  const auto nonzero = [](double value) { return std::abs(value) < kTiny ? kTiny : value; };
  double numerator = 1.0;
  double denominator = 1.0 / nonzero(1.0 - (a + b) * x / (a + 1.0));
  double fraction = denominator;
  for (int m = 1; m <= kMaximumSteps; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    denominator = 1.0 / nonzero(1.0 + even * denominator);
    numerator = nonzero(1.0 + even / numerator);
    fraction *= denominator * numerator;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    denominator = 1.0 / nonzero(1.0 + odd * denominator);
    numerator = nonzero(1.0 + odd / numerator);
    fraction *= denominator * numerator;
    if (std::abs(denominator * numerator - 1.0) < std::numeric_limits<double>::epsilon()) break;
  }
  return fraction;
}

double incomplete_beta(double a, double b, double x) {
  if (std::isnan(a + b + x)) return std::numeric_limits<double>::quiet_NaN();
  if (x <= 0.0) return 0.0;
  if (x >= 1.0) return 1.0;
  const double front = std::exp(log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * std::log(x) +
                                b * std::log1p(-x));
  return x < (a + 1.0) / (a + b + 2.0) ? front * continued_fraction(a, b, x) / a
                                       : 1.0 - front * continued_fraction(b, a, 1.0 - x) / b;
}

}  // namespace

at::Tensor incomplete_beta(const at::Tensor& a, const at::Tensor& b, const at::Tensor& x) {
  const at::Tensor first = a.contiguous(), second = b.contiguous(), at = x.contiguous();
  at::Tensor result = at::empty_like(first);
  const double* const a_data = first.const_data_ptr<double>();
  const double* const b_data = second.const_data_ptr<double>();
  const double* const x_data = at.const_data_ptr<double>();
  double* const out = result.mutable_data_ptr<double>();
  at::parallel_for(0, result.numel(), /*grain_size=*/1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = incomplete_beta(a_data[i], b_data[i], x_data[i]);
    }
  });
  return result;
}

}  // namespace flash::models
