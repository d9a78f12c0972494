#pragma once
// Compares the exponential of one instruction set with the C library's. Included by one file per
// instruction set, compiled with its flags.

#include <cstdint>

#include "csrc/denormals.h"
#include "csrc/generic/exp.h"

namespace flash {

struct ExpReport {
  double worst_ulp;       ///< over arguments with a normal result
  bool zero_below_range;  ///< 2^x is exactly 0 for -inf and all x below the clamp
  bool one_at_zero;
  bool keeps_nan;  ///< for quiet NaNs with any payload
};

ExpReport scalar_exp_float();
ExpReport scalar_exp_double();
ExpReport avx2_exp_float();
ExpReport avx2_exp_double();
ExpReport avx512_exp_float();
ExpReport avx512_exp_double();
ExpReport neon_exp_float();
ExpReport neon_exp_double();

/// The worst error in ulp over all 1.1e9 floats from -0 down to the last normal result.
double scalar_exp_of_every_float();
double avx2_exp_of_every_float();
double avx512_exp_of_every_float();
double neon_exp_of_every_float();

namespace {

template <class V>
typename V::Scalar exp2_of(typename V::Scalar x) {
  alignas(64) typename V::Scalar lanes[V::kWidth];
  typename V::Reg result[1] = {V::broadcast(x)};
  exp2<V>(result);
  V::store(lanes, result[0]);
  return lanes[V::kWidth - 1];
}

template <class V>
ExpReport check_exp() {
  using T = typename V::Scalar;
  constexpr bool kFloat = sizeof(T) == 4;
  const double smallest = kFloat ? -125.5 : -1021.5;
  const double epsilon = kFloat ? 0x1p-23 : 0x1p-52;
  ExpReport report = {};
  const FlushDenormals flush;
  constexpr int64_t kSteps = 2'000'000;
  for (int64_t i = 0; i <= kSteps; ++i) {
    const T x = static_cast<T>(smallest * static_cast<double>(i) / kSteps);
    const long double exact = __builtin_exp2l(static_cast<long double>(x));
    int exponent;
    __builtin_frexpl(exact, &exponent);
    const long double ulp = __builtin_ldexpl(epsilon, exponent - 1);
    const double error = static_cast<double>(__builtin_fabsl((exp2_of<V>(x) - exact) / ulp));
    if (error > report.worst_ulp) report.worst_ulp = error;
  }
  const T clamp = kFloat ? T(-127) : T(-1023);
  report.zero_below_range =
      exp2_of<V>(-__builtin_inf()) == 0 && exp2_of<V>(clamp) == 0 && exp2_of<V>(clamp * 1000) == 0;
  report.one_at_zero = exp2_of<V>(0) == 1;
  report.keeps_nan = true;
  constexpr uint64_t kPayloads[] = {0x0, 0x1, 0x155, 0x1fffff};
  for (const uint64_t payload : kPayloads) {
    T nan;
    if constexpr (kFloat) {
      nan = __builtin_bit_cast(T, static_cast<uint32_t>(0x7fc00000u + payload));
    } else {
      nan = __builtin_bit_cast(T, 0x7ff8000000000000ull + payload);
    }
    report.keeps_nan = report.keeps_nan && exp2_of<V>(nan) != exp2_of<V>(nan);
  }
  return report;
}

template <class V>
double check_exp_of_every_float() {
  static_assert(sizeof(typename V::Scalar) == 4);
  constexpr uint32_t kFirst = __builtin_bit_cast(uint32_t, -0.0f);
  constexpr uint32_t kLast = __builtin_bit_cast(uint32_t, -125.5f);
  const FlushDenormals flush;
  double worst = 0.0;
  for (uint32_t bits = kFirst; bits <= kLast; bits += V::kWidth) {
    alignas(64) float lanes[V::kWidth], found[V::kWidth];
    for (int i = 0; i < V::kWidth; ++i) {
      lanes[i] = __builtin_bit_cast(float, bits + i <= kLast ? bits + i : kLast);
    }
    typename V::Reg x[1] = {V::load(lanes)};
    exp2<V>(x);
    V::store(found, x[0]);
    for (int i = 0; i < V::kWidth; ++i) {
      const double exact = __builtin_exp2(static_cast<double>(lanes[i]));
      // One ulp of a float of this magnitude.
      const uint64_t exponent = __builtin_bit_cast(uint64_t, exact) & 0x7ff0000000000000ull;
      const double unit = __builtin_bit_cast(double, exponent) * 0x1p-23;
      const double error = __builtin_fabs(static_cast<double>(found[i]) - exact) / unit;
      if (error > worst) worst = error;
    }
  }
  return worst;
}

}  // namespace
}  // namespace flash
