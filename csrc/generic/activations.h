#pragma once
// The activation functions of gated layers, and their derivatives, on vectors. NaN stays NaN.

#include "csrc/generic/exp.h"
#include "csrc/generic/gelu.h"
#include "csrc/generic/tanh.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

/// Replaces x by 1 / (1 + e^-x).
template <class V, int N>
[[gnu::always_inline]] inline void sigmoid(typename V::Reg (&x)[N]) {
  using Reg = typename V::Reg;
  const Reg one = V::broadcast(typename V::Scalar(1));
  Reg t[N];
  each<N>([&](int i) { t[i] = V::sub(V::zero(), V::abs(x[i])); });
  exp<V>(t);
  each<N>([&](int i) { x[i] = V::div(V::if_less(x[i], V::zero(), t[i], one), V::add(one, t[i])); });
}

template <class V>
[[gnu::always_inline]] inline typename V::Reg sigmoid(typename V::Reg x) {
  typename V::Reg one[1] = {x};
  sigmoid<V>(one);
  return one[0];
}

template <class V>
[[gnu::always_inline]] inline typename V::Reg tanh(typename V::Reg x) {
  typename V::Reg one[1] = {x};
  tanh<V>(one);
  return one[0];
}

/// Replaces x <= 0 by e^x - 1. Small x use 2 t / (1 - t) with t = tanh(x / 2), which does not
/// cancel.
template <class V, int N>
[[gnu::always_inline]] inline void exp_minus_one(typename V::Reg (&x)[N]) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const Reg one = V::broadcast(T(1)), half = V::broadcast(T(0.5));
  Reg e[N];
  each<N>([&](int i) { e[i] = x[i]; });
  exp<V>(e);
  each<N>([&](int i) {
    const Reg t = tanh_near_zero<V>(V::mul(half, x[i]));
    const Reg near = V::div(V::add(t, t), V::sub(one, t));
    x[i] = V::if_less(V::abs(x[i]), one, near, V::sub(e[i], one));
  });
}

/// Applies a function of the C library to each lane.
template <class V, class F>
[[gnu::always_inline]] inline typename V::Reg each_lane(typename V::Reg x, F&& function) {
  alignas(64) typename V::Scalar lanes[V::kWidth];
  V::store(lanes, x);
  for (int i = 0; i < V::kWidth; ++i) lanes[i] = function(lanes[i]);
  return V::load(lanes);
}

inline float log_of_one_plus_exp(float x) { return __builtin_log1pf(__builtin_expf(x)); }
inline double log_of_one_plus_exp(double x) { return __builtin_log1p(__builtin_exp(x)); }

constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kLeakySlope = 0.01;
constexpr double kSoftplusIsLinear = 20;  ///< softplus(x) = x for x above this, as in torch

template <class V, GatedActivation kActivation, int N>
[[gnu::always_inline]] inline void activate(typename V::Reg (&x)[N]) {
  using enum GatedActivation;
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const Reg zero = V::zero();
  const auto constant = [](double value) { return V::broadcast(static_cast<T>(value)); };
  if constexpr (kActivation == kTanh) tanh<V>(x);
  if constexpr (kActivation == kSigmoid) sigmoid<V>(x);
  if constexpr (kActivation == kGelu) gelu<V>(x);
  // V::max returns its second operand if either is NaN.
  if constexpr (kActivation == kRelu) each<N>([&](int i) { x[i] = V::max(zero, x[i]); });
  if constexpr (kActivation == kLeakyRelu) {
    each<N>(
        [&](int i) { x[i] = V::if_less(zero, x[i], x[i], V::mul(constant(kLeakySlope), x[i])); });
  }
  if constexpr (kActivation == kSoftplus) {
    each<N>([&](int i) {
      const Reg curved = each_lane<V>(x[i], [](T value) { return log_of_one_plus_exp(value); });
      x[i] = V::if_less(constant(kSoftplusIsLinear), x[i], x[i], curved);
    });
  }
  if constexpr (kActivation == kElu || kActivation == kSelu) {
    Reg below[N];
    each<N>([&](int i) { below[i] = V::if_less(zero, x[i], zero, x[i]); });
    exp_minus_one<V>(below);
    each<N>([&](int i) {
      if constexpr (kActivation == kElu) {
        x[i] = V::if_less(zero, x[i], x[i], below[i]);
      } else {
        x[i] = V::if_less(zero, x[i], V::mul(constant(kSeluScale), x[i]),
                          V::mul(constant(kSeluScale * kSeluAlpha), below[i]));
      }
    });
  }
}

/// Replaces y, the value of the activation, by its derivative there. For GELU, which is not
/// monotonic, y is the argument instead.
template <class V, GatedActivation kActivation, int N>
[[gnu::always_inline]] inline void derivative(typename V::Reg (&y)[N]) {
  using enum GatedActivation;
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const Reg zero = V::zero(), one = V::broadcast(T(1));
  const auto constant = [](double value) { return V::broadcast(static_cast<T>(value)); };
  if constexpr (kActivation == kGelu) {
    Reg value[N];
    gelu_derivative<V>(y, value);
  }
  if constexpr (kActivation == kSoftplus) {
    Reg falling[N];
    each<N>([&](int i) { falling[i] = V::sub(zero, y[i]); });
    exp_minus_one<V>(falling);
    each<N>([&](int i) {
      y[i] = V::if_less(constant(kSoftplusIsLinear), y[i], one, V::sub(zero, falling[i]));
    });
  }
  each<N>([&](int i) {
    const Reg x = y[i];
    if constexpr (kActivation == kRelu) y[i] = V::if_less(zero, x, one, zero);
    if constexpr (kActivation == kTanh) y[i] = V::sub(one, V::mul(x, x));
    if constexpr (kActivation == kLeakyRelu) {
      y[i] = V::if_less(zero, x, one, constant(kLeakySlope));
    }
    if constexpr (kActivation == kSigmoid) y[i] = V::mul(x, V::sub(one, x));
    if constexpr (kActivation == kElu) y[i] = V::if_less(zero, x, one, V::add(x, one));
    if constexpr (kActivation == kSelu) {
      y[i] =
          V::if_less(zero, x, constant(kSeluScale), V::add(x, constant(kSeluScale * kSeluAlpha)));
    }
  });
}

/// Calls `call` with the activation as a compile-time constant.
template <class Call>
[[gnu::always_inline]] inline void with_activation(GatedActivation activation, Call&& call) {
  using enum GatedActivation;
  switch (activation) {
    case kRelu:
      return call.template operator()<kRelu>();
    case kSoftplus:
      return call.template operator()<kSoftplus>();
    case kTanh:
      return call.template operator()<kTanh>();
    case kSelu:
      return call.template operator()<kSelu>();
    case kLeakyRelu:
      return call.template operator()<kLeakyRelu>();
    case kSigmoid:
      return call.template operator()<kSigmoid>();
    case kElu:
      return call.template operator()<kElu>();
    case kGelu:
      return call.template operator()<kGelu>();
  }
}

}  // namespace
}  // namespace flash
