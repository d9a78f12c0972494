#pragma once
// The vector interface of generic/ (csrc/README.md) in plain C++, with vectors of width 1: the
// fallback without AVX2, and the proof that generic/ is portable.

#include <cstdint>

#include "csrc/philox.h"
#include "csrc/storage.h"

namespace flash {
namespace {

template <class T>
struct Vec {
  using Scalar = T;
  using Reg = T;
  using Counters = ScalarCounters;
  struct Mask {};  // a vector of width 1 has no remainder
  static constexpr int kWidth = 1;

  /// See avx2/vec.h. Shorter, because every term rounds twice without a fused multiply-add.
  static constexpr int64_t kLongestChain = 16;
  static constexpr int kScoreVecs = 3;
  static constexpr int score_rows(int vecs) { return vecs == 3 ? 4 : vecs == 2 ? 6 : 8; }
  static constexpr int kColumnVecs = 2;
  static constexpr int column_rows(int vecs) { return vecs == 2 ? 6 : 12; }
  static constexpr bool kUnrollsTerms = false;
  static constexpr bool kSplitsDown = false;
  static constexpr int kExpRows = 1;

  static Reg zero() { return T(0); }
  static Reg broadcast(T x) { return x; }
  static Reg broadcast(const T* p) { return *p; }
  static Reg load(const T* p) { return *p; }
  static void store(T* p, Reg x) { *p = x; }
  static Mask first(int64_t) { return {}; }
  static Reg load(const T* p, Mask) { return *p; }
  static void store(T* p, Reg x, Mask) { *p = x; }
  static Reg only(Reg x, Mask) { return x; }
  static Reg load(const BFloat16* p) { return to_float(*p); }
  static Reg load(const Half* p) { return to_float(*p); }
  static void store(BFloat16* p, Reg x) { round_to(static_cast<float>(x), p); }
  static void store(Half* p, Reg x) { round_to(static_cast<float>(x), p); }

  static void load_even_odd(const BFloat16* p, Reg& even, Reg& odd) {
    even = to_float(p[0]);
    odd = to_float(p[1]);
  }
  static void interleave(Reg&, Reg&) {}

  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg div(Reg a, Reg b) { return a / b; }
  // Rounds twice: without the instruction, std::fma is a library call and fifty times slower.
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    return a == T(0) && __builtin_signbit(a) ? c : a * b + c;
  }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static Reg abs(Reg x) { return __builtin_signbit(x) ? -x : x; }
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) { return a < b ? x : y; }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) { return a == b ? x : y; }
  static Reg if_set(const bool* flags, Reg x, Reg y) { return *flags ? x : y; }
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    return *bytes == value ? x : y;
  }
  static Reg if_positive(Reg sign, Reg x) { return __builtin_signbit(sign) ? T(0) : x; }
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    return *words >= threshold ? x : T(0);
  }

  struct Rounded {
    Reg value;
    int32_t integer;
  };
  static Rounded round(Reg x) {
    // Adding 1.5 * 2^(mantissa bits) leaves the nearest integer in the low bits.
    constexpr T kMagic = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);
    if (x != x) return {x, 0};
    const T value = (x + kMagic) - kMagic;
    return {value, static_cast<int32_t>(value)};
  }
  static Reg scale(Reg x, Rounded n) {
    if constexpr (sizeof(T) == 4) {
      const uint32_t bits =
          __builtin_bit_cast(uint32_t, x) + (static_cast<uint32_t>(n.integer) << 23);
      return __builtin_bit_cast(T, bits);
    } else {
      const uint64_t bits =
          __builtin_bit_cast(uint64_t, x) + (static_cast<uint64_t>(int64_t{n.integer}) << 52);
      return __builtin_bit_cast(T, bits);
    }
  }

  static void transpose(Reg (&)[1]) {}
};

}  // namespace
}  // namespace flash
