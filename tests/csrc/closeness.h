#pragma once
// The kernels' answers held to the definition's.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/csrc/definition.h"
#include "tests/csrc/problem.h"

namespace flash::testing {

// Sums of up to 2,049 products of standard normal numbers round by at most 17 units in the last
// place of the largest result of their tensor, over every shape and option of these tests.
inline constexpr double kUnits = 64;

// A row's part of a slope's gradient is a sum of dS times distances of up to 2,000 keys, of which
// ALiBi leaves weight to the nearest tens: at most 93 units.
inline constexpr double kSlopeUnits = 256;

inline double largest(const std::vector<double>& x) {
  double result = 0;
  for (const double value : x) {
    if (std::isfinite(value)) result = std::max(result, std::abs(value));
  }
  return result;
}

/// Of equal infinities 0, of a NaN on either side an infinity.
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

/// One tensor of an answer, rounded to `storage` once more than it was computed.
template <class T>
void expect_close(const char* name, const std::vector<double>& got,
                  const std::vector<double>& expected, double units, Storage storage) {
  ASSERT_EQ(got.size(), expected.size()) << name;
  // Where every row attends one key only, the gradient of a score is 0, as the difference of two
  // sums of order 1. Results as small as 1e-9 beside a large sink come of weights e^-20, which
  // multiply the rounding of a score.
  constexpr double kNegligible = 1e-9;
  const double size = largest(expected) > 0 ? std::max(largest(expected), kNegligible) : 1;
  const double allowed = units * static_cast<double>(std::numeric_limits<T>::epsilon()) * size;
  const double rounding = storage == Storage::kNative     ? 0
                          : storage == Storage::kBFloat16 ? 0x1p-8
                                                          : 0x1p-11;
  // Below the least normal number of binary16 the spacing stays 2^-24.
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
                  << expected[worst] << " and at most " << allowed << " more or less";
  }
}

template <class T>
void expect_close(const Answer& got, const Answer& expected, const Options& options,
                  Directions directions = Directions::kBoth) {
  constexpr Storage kNative = Storage::kNative;
  expect_close<T>("out", got.out, expected.out, kUnits,
                  options.out_16_bit ? options.storage : kNative);
  expect_close<T>("lse", got.lse, expected.lse, kUnits, kNative);
  if (directions == Directions::kForward) return;
  expect_close<T>("dq", got.dq, expected.dq, kUnits, kNative);
  expect_close<T>("dk", got.dk, expected.dk, kUnits, kNative);
  expect_close<T>("dv", got.dv, expected.dv, kUnits, kNative);
  expect_close<T>("dbias", got.dbias, expected.dbias, kUnits,
                  adds_to_grad_bias(options) ? kNative : options.storage);
  expect_close<T>("dslopes", got.dslopes, expected.dslopes, kSlopeUnits, kNative);
  expect_close<T>("dsinks", got.dsinks, expected.dsinks, kUnits, kNative);
}

}  // namespace flash::testing
