#pragma once
// 2^x and e^x on vectors, for the weights of a softmax: arguments up to 0, and NaN.

namespace flash {
namespace {

/// 2^x for x <= 0. Exactly 0 for x <= the clamp (a masked score is -inf); NaN stays NaN.
/// x = n + f with n an integer and |f| <= 1/2; a polynomial gives 2^f, and n goes to the exponent.
/// Within 2.1 ulp in float (degree 5) and 1.6 ulp in double (degree 11); results below the smallest
/// normal number are flushed to 0 by the kernels' floating-point mode.
template <class V>
[[gnu::always_inline]] inline typename V::Reg exp2(typename V::Reg x) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr bool kFloat = sizeof(T) == 4;
  x = V::max(V::broadcast(kFloat ? T(-127) : T(-1023)), x);
  const auto n = V::round(x);
  const Reg f = V::sub(x, n.value);
  const auto c = [](double value) { return V::broadcast(static_cast<T>(value)); };
  Reg p;
  if constexpr (kFloat) {
    p = V::fma(c(0.0013264727), f, c(0.009671513));
    p = V::fma(p, f, c(0.055507337));
    p = V::fma(p, f, c(0.24022242));
    p = V::fma(p, f, c(0.69314698));
    p = V::fma(p, f, c(1.0));
  } else {
    // Estrin's scheme: the chain of eleven dependent steps would be longer than the arithmetic.
    const Reg f2 = V::mul(f, f), f4 = V::mul(f2, f2);
    const Reg a0 = V::fma(c(0.6931471805599455), f, c(1.0));
    const Reg a1 = V::fma(c(0.055504108664806553), f, c(0.2402265069591012));
    const Reg a2 = V::fma(c(0.0013333558149582433), f, c(0.0096181291076007110));
    const Reg a3 = V::fma(c(1.5252731092200807e-05), f, c(0.00015403530448740787));
    const Reg a4 = V::fma(c(1.0179106033870054e-07), f, c(1.3215439256000032e-06));
    const Reg a5 = V::fma(c(4.3093148583739213e-10), f, c(7.073143019078215e-09));
    p = V::fma(V::fma(V::fma(a5, f2, a4), f4, V::fma(a3, f2, a2)), f4, V::fma(a1, f2, a0));
  }
  return V::scale(p, n);
}

/// e^x for x <= 0. Scores stay in natural units up to here: scaled by log2(e) any earlier, two that
/// differ by little and are large (a bias of -1e4, a finite mask) would be rounded apart.
template <class V>
[[gnu::always_inline]] inline typename V::Reg exp(typename V::Reg x) {
  return exp2<V>(V::mul(x, V::broadcast(static_cast<typename V::Scalar>(1.4426950408889634074))));
}

}  // namespace
}  // namespace flash
