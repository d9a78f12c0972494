#pragma once
// 2^x and e^x on vectors, for the weights of a softmax: arguments up to 0, and NaN.

namespace flash {
namespace {

/// Applies `step` to each of N independent registers. Everything here goes through N of them side by
/// side: one exponential is a chain of some 45 cycles, too long for a core to find the next one
/// behind it.
template <int N, class F>
[[gnu::always_inline]] inline void each(F&& step) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) step(i);
}

/// f to 2^f by a polynomial that is exactly 1 at 0. The coefficients make the largest relative error
/// as small as it can be for |f| <= 1/2, or for 0 <= f < 1 where V splits an exponent downwards.
template <class V, int N>
[[gnu::always_inline]] inline void exp2_polynomial(typename V::Reg (&f)[N]) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const auto c = [](double nearest, double down) {
    return V::broadcast(static_cast<T>(V::kSplitsDown ? down : nearest));
  };
  const Reg one = V::broadcast(T(1));
  Reg p[N];
  if constexpr (sizeof(T) == 4) {
    const auto step = [&](Reg next) { each<N>([&](int i) { p[i] = V::fma(p[i], f[i], next); }); };
    each<N>([&](int i) { p[i] = c(0.0013264727, 0.0018671301); });
    step(c(0.009671513, 0.0090170303));
    step(c(0.055507337, 0.055799913));
    step(c(0.24022242, 0.24016445));
    step(c(0.69314698, 0.69315131));
    step(one);
  } else {
    // Estrin's scheme: the chain of eleven dependent steps would be longer than the arithmetic.
    each<N>([&](int i) {
      const Reg x = f[i], x2 = V::mul(x, x), x4 = V::mul(x2, x2);
      const Reg a0 = V::fma(c(0.6931471805599455, 0.69314718055994593), x, one);
      const Reg a1 = V::fma(c(0.055504108664806553, 0.055504108665602253), x,
                            c(0.2402265069591012, 0.2402265069590633));
      const Reg a2 = V::fma(c(0.0013333558149582433, 0.0013333558629566755), x,
                            c(0.0096181291076007110, 0.0096181290995507956));
      const Reg a3 = V::fma(c(1.5252731092200807e-05, 1.5253175055562796e-05), x,
                            c(0.00015403530448740787, 0.0001540351230962866));
      const Reg a4 = V::fma(c(1.0179106033870054e-07, 1.0253212435721934e-07), x,
                            c(1.3215439256000032e-06, 1.320836728895114e-06));
      const Reg a5 = V::fma(c(4.3093148583739213e-10, 6.2634661422960210e-10), x,
                            c(7.073143019078215e-09, 6.5595293227705284e-09));
      p[i] = V::fma(V::fma(V::fma(a5, x2, a4), x4, V::fma(a3, x2, a2)), x4, V::fma(a1, x2, a0));
    });
  }
  each<N>([&](int i) { f[i] = p[i]; });
}

/// x to 2^x for x <= 0. Exactly 0 for x <= the clamp (a masked score is -inf); NaN stays NaN; results
/// below the smallest normal number are flushed to 0 by the kernels' floating-point mode.
/// x = n + f with n an integer: a polynomial gives 2^f, and n goes to the exponent. Within 2.1 ulp
/// in float (degree 5) and 1.6 ulp in double (degree 11) where n is the nearest integer, within 2.9
/// and 2.3 where it is the one below.
template <class V, int N>
[[gnu::always_inline]] inline void exp2(typename V::Reg (&x)[N]) {
  using T = typename V::Scalar;
  typename V::Reg f[N];
  if constexpr (V::kSplitsDown) {
    each<N>([&](int i) { f[i] = V::fraction(x[i]); });
    exp2_polynomial<V>(f);
    each<N>([&](int i) { x[i] = V::scale(f[i], x[i]); });
  } else {
    typename V::Rounded n[N];
    each<N>([&](int i) { x[i] = V::max(V::broadcast(sizeof(T) == 4 ? T(-127) : T(-1023)), x[i]); });
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
  const auto log2_e = V::broadcast(static_cast<typename V::Scalar>(1.4426950408889634074));
  each<N>([&](int i) { x[i] = V::mul(x[i], log2_e); });
  exp2<V>(x);
}

}  // namespace
}  // namespace flash
