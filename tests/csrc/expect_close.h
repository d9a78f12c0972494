#pragma once
// Compares the results of the kernels with the reference.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/csrc/problem.h"
#include "tests/csrc/reference.h"

namespace flash::testing {

// The tolerance in machine epsilons of the largest element of a tensor. The largest error over all
// shapes and options of these tests, with sums of up to 2,049 products, is 17.
inline constexpr double kUnits = 64;

// A row's contribution to the gradient of its slope is a sum of dS times distance over up to 2,000
// keys, of which ALiBi leaves weight on the nearest tens. The largest error is 93.
inline constexpr double kSlopeUnits = 256;

inline double largest(const std::vector<double>& x) {
  double result = 0;
  for (const double value : x) {
    if (std::isfinite(value)) result = std::max(result, std::abs(value));
  }
  return result;
}

/// |a - b|; 0 for equal infinities, infinity if either is NaN.
inline double difference(double a, double b) {
  if (a == b) return 0;
  const double result = std::abs(a - b);
  return std::isnan(result) ? HUGE_VAL : result;
}

inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    worst = std::max(worst, difference(a[i], b[i]));
  }
  return worst;
}

/// Compares one tensor, which the kernel has rounded to `storage`.
template <class T>
void expect_close(const char* name, const std::vector<double>& got,
                  const std::vector<double>& expected, double units, Storage storage) {
  ASSERT_EQ(got.size(), expected.size()) << name;
  // If every row attends a single key, the gradient of a score is 0, computed as the difference of
  // two sums of order 1. Next to a large sink, weights of e^-20 give results as small as 1e-9, to
  // which the rounding of a score contributes.
  constexpr double kNegligible = 1e-9;
  const double size = largest(expected) > 0 ? std::max(largest(expected), kNegligible) : 1;
  const double allowed = units * static_cast<double>(std::numeric_limits<T>::epsilon()) * size;
  const double rounding = storage == Storage::kNative     ? 0
                          : storage == Storage::kBFloat16 ? 0x1p-8
                                                          : 0x1p-11;
  // Half of the spacing of denormals in binary16, 2^-24.
  const double least = storage == Storage::kHalf ? 0x1p-25 : 0;
  size_t worst = 0;
  double excess = -HUGE_VAL;
  for (size_t i = 0; i < got.size(); ++i) {
    const double bound = std::isfinite(expected[i])
                             ? allowed + least + rounding * (std::abs(expected[i]) + allowed)
                             : 0;
    const double over = difference(got[i], expected[i]) - bound;
    if (over > excess) excess = over, worst = i;
  }
  if (excess > 0) {
    ADD_FAILURE() << name << "[" << worst << "] is " << got[worst] << ", expected "
                  << expected[worst] << " within " << allowed;
  }
}

template <class T>
void expect_close(const Answer& got, const Answer& expected, const Options& options,
                  Directions directions = Directions::kBoth, double product_units = kUnits) {
  constexpr Storage kNative = Storage::kNative;
  expect_close<T>("out", got.out, expected.out, product_units,
                  options.out_16_bit ? options.storage : kNative);
  expect_close<T>("lse", got.lse, expected.lse, kUnits, kNative);
  if (directions == Directions::kForward) return;
  expect_close<T>("dq", got.dq, expected.dq, product_units, kNative);
  expect_close<T>("dk", got.dk, expected.dk, product_units, kNative);
  expect_close<T>("dv", got.dv, expected.dv, product_units, kNative);
  expect_close<T>("dbias", got.dbias, expected.dbias, product_units,
                  adds_to_grad_bias(options) ? kNative : options.storage);
  expect_close<T>("dslopes", got.dslopes, expected.dslopes, kSlopeUnits / kUnits * product_units,
                  kNative);
  expect_close<T>("dsinks", got.dsinks, expected.dsinks, product_units, kNative);
}

}  // namespace flash::testing
