#pragma once
// 2^x and e^x on vectors, for the weights of a softmax: arguments up to 0, and NaN.

#include <utility>

namespace flash {
namespace {

/// Applies `step` to each of N independent registers. Everything here goes through N of them side
/// by side: one exponential is a chain of some 45 cycles, too long for a core to find the next one
/// behind it.
template <int N, class F>
[[gnu::always_inline]] inline void each(F&& step) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (step(kIndex), ...);
  }
  (std::make_integer_sequence<int, N>());
}

/// Calls f.operator()<rows>(first_row) for groups of V::kExpRows rows and then row by row. So many
/// exponentials side by side keep the core busy and still fit its registers and schedulers.
template <class V, class F>
[[gnu::always_inline]] inline void for_exp_groups(int64_t rows, F&& f) {
  int64_t r = 0;
  for (; r + V::kExpRows <= rows; r += V::kExpRows) f.template operator()<V::kExpRows>(r);
  for (; r < rows; ++r) f.template operator()<1>(r);
}

/// The numbers of an exponential: log2(e), the clamp, and the coefficients of a polynomial for 2^f
/// from f^1 up. They make the largest relative error as small as it can be with a value of exactly
/// 1 at 0: for |f| <= 1/2, or for 0 <= f < 1 where V splits an exponent downwards.
template <class T, bool kDown>
struct ExpNumbers;
template <>
struct ExpNumbers<float, false> {
  float log2_e = 1.44269504f, clamp = -127;
  float c[5] = {0.69314698f, 0.24022242f, 0.055507337f, 0.009671513f, 0.0013264727f};
};
template <>
struct ExpNumbers<float, true> {
  float log2_e = 1.44269504f, clamp = -127;
  float c[5] = {0.69315131f, 0.24016445f, 0.055799913f, 0.0090170303f, 0.0018671301f};
};
template <>
struct ExpNumbers<double, false> {
  double log2_e = 1.4426950408889634, clamp = -1023;
  double c[11] = {0.6931471805599455,     0.2402265069591012,     0.055504108664806553,
                  0.0096181291076007110,  0.0013333558149582433,  0.00015403530448740787,
                  1.5252731092200807e-05, 1.3215439256000032e-06, 1.0179106033870054e-07,
                  7.073143019078215e-09,  4.3093148583739213e-10};
};
template <>
struct ExpNumbers<double, true> {
  double log2_e = 1.4426950408889634, clamp = -1023;
  double c[11] = {0.69314718055994593,    0.2402265069590633,    0.055504108665602253,
                  0.0096181290995507956,  0.0013333558629566755, 0.0001540351230962866,
                  1.5253175055562796e-05, 1.320836728895114e-06, 1.0253212435721934e-07,
                  6.5595293227705284e-09, 6.2634661422960210e-10};
};

/// f to 2^f.
template <class V, int N>
[[gnu::always_inline]] inline void exp2_polynomial(typename V::Reg (&f)[N]) {
  using Reg = typename V::Reg;
  constexpr ExpNumbers<typename V::Scalar, V::kSplitsDown> kNumbers;
  const auto c = [&](int power) { return V::broadcast(kNumbers.c[power - 1]); };
  const Reg one = V::broadcast(typename V::Scalar(1));
  Reg p[N];
  if constexpr (sizeof(typename V::Scalar) == 4) {
    const auto step = [&](Reg next) { each<N>([&](int i) { p[i] = V::fma(p[i], f[i], next); }); };
    each<N>([&](int i) { p[i] = c(5); });
    step(c(4));
    step(c(3));
    step(c(2));
    step(c(1));
    step(one);
  } else {
    // Estrin's scheme: the chain of eleven dependent steps would be longer than the arithmetic.
    each<N>([&](int i) {
      const Reg x = f[i], x2 = V::mul(x, x), x4 = V::mul(x2, x2);
      const Reg a0 = V::fma(c(1), x, one);
      const Reg a1 = V::fma(c(3), x, c(2));
      const Reg a2 = V::fma(c(5), x, c(4));
      const Reg a3 = V::fma(c(7), x, c(6));
      const Reg a4 = V::fma(c(9), x, c(8));
      const Reg a5 = V::fma(c(11), x, c(10));
      p[i] = V::fma(V::fma(V::fma(a5, x2, a4), x4, V::fma(a3, x2, a2)), x4, V::fma(a1, x2, a0));
    });
  }
  each<N>([&](int i) { f[i] = p[i]; });
}

/// x to 2^x for x <= 0. Exactly 0 for x <= the clamp (a masked score is -inf); NaN stays NaN;
/// results below the smallest normal number are flushed to 0 by the kernels' floating-point mode.
/// x = n + f with n an integer: a polynomial gives 2^f, and n goes to the exponent. Within 2.1 ulp
/// in float (degree 5) and 1.6 ulp in double (degree 11) where n is the nearest integer, within 3.1
/// and 2.3 where it is the one below; in float, the worst of all floats.
template <class V, int N>
[[gnu::always_inline]] inline void exp2(typename V::Reg (&x)[N]) {
  constexpr ExpNumbers<typename V::Scalar, V::kSplitsDown> kNumbers;
  typename V::Reg f[N];
  if constexpr (V::kSplitsDown) {
    each<N>([&](int i) { f[i] = V::fraction(x[i]); });
    exp2_polynomial<V>(f);
    each<N>([&](int i) { x[i] = V::scale(f[i], x[i]); });
  } else {
    typename V::Rounded n[N];
    each<N>([&](int i) { x[i] = V::max(V::broadcast(kNumbers.clamp), x[i]); });
    each<N>([&](int i) { n[i] = V::round(x[i]); });
    each<N>([&](int i) { f[i] = V::sub(x[i], n[i].value); });
    exp2_polynomial<V>(f);
    each<N>([&](int i) { x[i] = V::scale(f[i], n[i]); });
  }
}

/// x to e^x for x <= 0. Scores stay in natural units up to here: scaled by log2(e) any earlier, two
/// that differ by little and are large (a bias of -1e4, a finite mask) would be rounded apart.
template <class V, int N>
[[gnu::always_inline]] inline void exp(typename V::Reg (&x)[N]) {
  constexpr ExpNumbers<typename V::Scalar, V::kSplitsDown> kNumbers;
  const auto log2_e = V::broadcast(kNumbers.log2_e);
  each<N>([&](int i) { x[i] = V::mul(x[i], log2_e); });
  exp2<V>(x);
}

}  // namespace
}  // namespace flash
