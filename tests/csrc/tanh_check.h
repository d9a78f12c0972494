#pragma once
// Compares the hyperbolic tangent of one instruction set with the C library's. Included by one file
// per instruction set, compiled with its flags.

#include <cstdint>

#include "csrc/denormals.h"
#include "csrc/generic/tanh.h"

namespace flash {

struct TanhReport {
  double worst_ulp;         ///< over normal arguments
  double worst_derivative;  ///< of 1 - tanh^2, in machine epsilons
  bool odd;                 ///< tanh(-x) == -tanh(x), bit for bit
  bool one_at_infinity;     ///< and wherever tanh rounds to 1
  bool zero_at_zero;
  bool keeps_nan;
};

TanhReport scalar_tanh_float();
TanhReport scalar_tanh_double();
TanhReport avx2_tanh_float();
TanhReport avx2_tanh_double();
TanhReport avx512_tanh_float();
TanhReport avx512_tanh_double();
TanhReport neon_tanh_float();
TanhReport neon_tanh_double();

namespace {

template <class V>
typename V::Scalar tanh_of(typename V::Scalar x) {
  alignas(64) typename V::Scalar lanes[V::kWidth];
  typename V::Reg result[1] = {V::broadcast(x)};
  tanh<V>(result);
  V::store(lanes, result[0]);
  return lanes[V::kWidth - 1];
}

template <class V>
TanhReport check_tanh() {
  using T = typename V::Scalar;
  constexpr bool kFloat = sizeof(T) == 4;
  const double epsilon = kFloat ? 0x1p-23 : 0x1p-52;
  const T infinity = static_cast<T>(__builtin_inf());
  TanhReport report = {};
  report.odd = true;
  const FlushDenormals flush;
  const auto check = [&](T x) {
    const T got = tanh_of<V>(x);
    const long double exact = __builtin_tanhl(static_cast<long double>(x));
    int exponent;
    __builtin_frexpl(exact, &exponent);
    const long double ulp = __builtin_ldexpl(epsilon, exponent - 1);
    const double error = static_cast<double>(__builtin_fabsl((got - exact) / ulp));
    if (error > report.worst_ulp) report.worst_ulp = error;
    const long double slope = 1 - exact * exact;
    const T got_slope = T(1) - got * got;
    const double slope_error = static_cast<double>(__builtin_fabsl(got_slope - slope) / epsilon);
    if (slope_error > report.worst_derivative) report.worst_derivative = slope_error;
    report.odd = report.odd && tanh_of<V>(-x) == -got;
  };
  // Evenly spaced up to where tanh is 1, and geometrically down to the smallest values.
  constexpr int64_t kSteps = 2'000'000;
  const double largest = kFloat ? 10 : 20;
  for (int64_t i = 1; i <= kSteps; ++i)
    check(static_cast<T>(largest * static_cast<double>(i) / kSteps));
  const T smallest = kFloat ? T(0x1p-120) : T(0x1p-1000);
  for (T x = T(1); x > smallest; x *= T(0.999)) check(x);
  report.one_at_infinity = tanh_of<V>(infinity) == 1 && tanh_of<V>(-infinity) == -1 &&
                           tanh_of<V>(static_cast<T>(1e30)) == 1 && tanh_of<V>(T(25)) == 1;
  report.zero_at_zero = tanh_of<V>(0) == 0;
  const T nan = tanh_of<V>(static_cast<T>(__builtin_nan("")));
  report.keeps_nan = nan != nan;
  return report;
}

}  // namespace
}  // namespace flash
