#pragma once
// Scalar conversions of the 16-bit types. They use integer arithmetic, because the kernels flush
// denormals, which would lose the small values of binary16.

#include <cstdint>

namespace flash {

/// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};
/// IEEE 754 binary16.
struct Half {
  uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
}

inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t exponent = x.bits >> 10 & 0x1F, mantissa = x.bits & 0x3FF;
  uint32_t bits;
  if (exponent == 0) {  // mantissa * 2^-24, a normal float32 or 0
    bits = __builtin_bit_cast(uint32_t, static_cast<float>(mantissa) * 0x1p-24f);
  } else {
    bits = (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | mantissa << 13;
  }
  return __builtin_bit_cast(float, sign | bits);
}

/// Rounds to nearest, ties to even. NaN stays NaN.
inline void round_to(float x, BFloat16* result) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  const uint32_t rounded = is_nan ? bits | 0x400000 : bits + 0x7FFF + (bits >> 16 & 1);
  result->bits = static_cast<uint16_t>(rounded >> 16);
}

inline void round_to(float x, Half* result) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  uint32_t half;
  if (size >= 0x47800000) {  // at least 2^16, Inf and NaN
    half = size > 0x7F800000 ? 0x7E00 : 0x7C00;
  } else if (size >= 0x38800000) {  // at least 2^-14; what rounds up to 2^16 becomes Inf
    half = (size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13;
  } else if (size > 0x33000000) {  // more than half of 2^-24, the smallest denormal
    const uint32_t shift = 126 - (size >> 23);
    const uint32_t mantissa = (size & 0x7FFFFF) | 0x800000;
    const uint32_t rest = mantissa & ((1U << shift) - 1), middle = 1U << (shift - 1);
    half = mantissa >> shift;
    half += rest > middle || (rest == middle && half % 2 == 1) ? 1 : 0;
  } else {
    half = 0;
  }
  result->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace flash
