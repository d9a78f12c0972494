#pragma once
// Functions of one number that a compiler can vectorise: no call and no branch in the float ones of
// the default network. Inlined always, so that they are compiled for the caller's instruction set.

#include <bit>
#include <cmath>
#include <cstdint>

#include "layers/gated_rows.h"

namespace flash::models {
namespace {

[[gnu::always_inline]] inline double exponential(double x) { return std::exp(x); }

/// exp within 2 units in the last place, in operations that a compiler can vectorise: 2^n e^r with
/// |r| <= ln(2)/2 and the polynomial of Cephes' expf.
[[gnu::always_inline]] inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
}

[[gnu::always_inline]] inline double exponential_minus_one(double x) { return std::expm1(x); }
[[gnu::always_inline]] inline float exponential_minus_one(float x) { return exponential(x) - 1.0f; }
[[gnu::always_inline]] inline double hyperbolic_tangent(double x) { return std::tanh(x); }
[[gnu::always_inline]] inline float hyperbolic_tangent(float x) {
  return 1.0f - 2.0f / (exponential(2 * x) + 1.0f);
}

template <class T>
[[gnu::always_inline]] inline T sigmoid(T x) {
  return T(1) / (T(1) + exponential(-x));
}

constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;

template <GatedActivation kActivation, class T>
[[gnu::always_inline]] inline T activation(T x) {
  using enum GatedActivation;
  if constexpr (kActivation == kGelu) return x;  // the rest is torch's: see activate_rows
  if constexpr (kActivation == kRelu) return x > T(0) ? x : T(0);
  if constexpr (kActivation == kSoftplus) return x > T(20) ? x : std::log1p(std::exp(x));
  if constexpr (kActivation == kTanh) return hyperbolic_tangent(x);
  if constexpr (kActivation == kLeakyRelu) return x > T(0) ? x : T(0.01) * x;
  if constexpr (kActivation == kSigmoid) return sigmoid(x);
  const T below = exponential_minus_one(x < T(0) ? x : T(0));
  if constexpr (kActivation == kElu) return x > T(0) ? x : below;
  if constexpr (kActivation == kSelu) {
    return x > T(0) ? T(kSeluScale) * x : T(kSeluScale * kSeluAlpha) * below;
  }
}

/// The derivative where the activation has this value; of every one but GELU it can be told from
/// that.
template <GatedActivation kActivation, class T>
[[gnu::always_inline]] inline T derivative(T y) {
  using enum GatedActivation;
  if constexpr (kActivation == kGelu) return T(1);
  if constexpr (kActivation == kRelu) return y > T(0) ? T(1) : T(0);
  if constexpr (kActivation == kSoftplus) return y > T(20) ? T(1) : -std::expm1(-y);
  if constexpr (kActivation == kTanh) return T(1) - y * y;
  if constexpr (kActivation == kLeakyRelu) return y > T(0) ? T(1) : T(0.01);
  if constexpr (kActivation == kSigmoid) return y * (T(1) - y);
  if constexpr (kActivation == kElu) return y > T(0) ? T(1) : y + T(1);
  if constexpr (kActivation == kSelu) {
    return y > T(0) ? T(kSeluScale) : y + T(kSeluScale * kSeluAlpha);
  }
}

}  // namespace
}  // namespace flash::models
