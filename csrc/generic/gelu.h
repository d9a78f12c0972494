#pragma once
// GELU, x Phi(x), and its derivative on vectors, with the exact normal distribution Phi.
//
// The tail T(z) = Phi(-z), z >= 0, is computed as e^(-z^2 / 2) times a smooth factor, a polynomial
// in v = z / (z + k) with 0 <= v < 1. For x > 0, Phi(x) = 1 - T(x). So nothing cancels for x < 0,
// where x (1 + erf) loses every digit, and T(0) is exactly 1/2. The absolute error of GELU is
// at most 1.5 machine epsilons times |x|, that of its derivative 1.5 machine epsilons.

#include "csrc/generic/exp.h"

namespace flash {
namespace {

/// k and the coefficients of the polynomial from v^0 up, from Chebyshev interpolation with 60
/// digits up to the z where e^(-z^2 / 2) underflows. The polynomial's error in T is below 4e-10 for
/// float and 7e-18 for double.
template <class T>
struct TailConstants;
template <>
struct TailConstants<float> {
  static constexpr int kDegree = 9;
  float k = 4;
  float c[kDegree + 1] = {0.5f,          -1.595769127f,  2.404231964f,   -2.106577097f,
                          0.8724914835f, 0.1009467502f,  -0.1910032499f, -0.07107259839f,
                          0.1251167253f, -0.03840492685f};
};
template <>
struct TailConstants<double> {
  static constexpr int kDegree = 20;
  double k = 4;
  double c[kDegree + 1] = {0.5,
                           -1.59576912160573072,
                           2.40423087839427273,
                           -2.10653777017029538,
                           0.871924932758526059,
                           0.105159309117831851,
                           -0.209087251750359976,
                           -0.0243886474643844249,
                           0.0539922046974047622,
                           0.0179934068091244986,
                           -0.0107252203753493138,
                           -0.0128560388080208929,
                           0.00991018788494039269,
                           -0.0235854920672192802,
                           0.0556197549924664733,
                           -0.0816808556723017246,
                           0.0908719926910304378,
                           -0.0742614786504873714,
                           0.0397828379411989866,
                           -0.0122233588265244958,
                           0.00162973016267331047};
};

/// Sets phi = Phi(x) and bell = e^(-x^2 / 2).
template <class V, int N>
[[gnu::always_inline]] inline void normal_distribution(const typename V::Reg (&x)[N],
                                                       typename V::Reg (&phi)[N],
                                                       typename V::Reg (&bell)[N]) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr TailConstants<T> kConstants;
  const Reg one = V::broadcast(T(1));
  Reg v[N];
  each<N>([&](int i) {
    const Reg z = V::abs(x[i]);
    bell[i] = V::mul(V::mul(x[i], x[i]), V::broadcast(T(-0.5)));
    // V::max returns its second operand if either is NaN: here 0, for Inf / Inf.
    v[i] = V::max(V::div(z, V::add(z, V::broadcast(kConstants.k))), V::zero());
  });
  exp<V>(bell);
  each<N>([&](int i) { phi[i] = V::broadcast(kConstants.c[kConstants.kDegree]); });
#pragma GCC unroll 20
  for (int power = kConstants.kDegree - 1; power >= 0; --power) {
    each<N>([&](int i) { phi[i] = V::fma(phi[i], v[i], V::broadcast(kConstants.c[power])); });
  }
  each<N>([&](int i) {
    const Reg tail = V::mul(phi[i], bell[i]);
    phi[i] = V::if_less(V::zero(), x[i], V::sub(one, tail), tail);
  });
}

template <class V, int N>
[[gnu::always_inline]] inline void gelu(typename V::Reg (&x)[N]) {
  typename V::Reg phi[N], bell[N];
  normal_distribution<V, N>(x, phi, bell);
  each<N>([&](int i) { x[i] = V::mul(x[i], phi[i]); });
}

/// Replaces x by gelu'(x) = Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi), and sets value = gelu(x).
template <class V, int N>
[[gnu::always_inline]] inline void gelu_derivative(typename V::Reg (&x)[N],
                                                   typename V::Reg (&value)[N]) {
  using T = typename V::Scalar;
  typename V::Reg phi[N], bell[N];
  normal_distribution<V, N>(x, phi, bell);
  const auto density = V::broadcast(T(0.3989422804014327));
  each<N>([&](int i) {
    value[i] = V::mul(x[i], phi[i]);
    x[i] = V::fma(V::mul(x[i], density), bell[i], phi[i]);
  });
}

}  // namespace
}  // namespace flash
