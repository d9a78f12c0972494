#pragma once
// The vector interface of generic/ (csrc/README.md) for AVX2, FMA and F16C.

#include <immintrin.h>

#include <cstdint>

#include "csrc/storage.h"

namespace flash {
namespace {

template <class T>
struct Vec;

/// Counters for philox.h.
struct Avx2Counters {
  using Reg = __m256i;
  static constexpr int kWidth = 4;
  static Reg broadcast(uint32_t x) { return _mm256_set1_epi64x(x); }
  static Reg sequence(uint32_t first) {
    return _mm256_add_epi64(broadcast(first), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Reg product(Reg a, Reg b) { return _mm256_mul_epu32(a, b); }
  static Reg high_half(Reg x) { return _mm256_srli_epi64(x, 32); }
  static Reg exclusive_or(Reg a, Reg b) { return _mm256_xor_si256(a, b); }
  static void store(uint32_t* p, Reg x) {
    const Reg low = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(low));
  }
  /// even[0], odd[0], even[1], odd[1], …
  static void store_alternating(uint32_t* p, Reg even, Reg odd) {
    const Reg both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), both);
  }
};

// The register blocks of the micro-kernel, MR rows by NR vectors. `MR * NR` accumulators, NR loaded
// operands and one broadcast must fit into sixteen registers.
struct Avx2Tiles {
  using Counters = Avx2Counters;
  /// The most terms that are summed in one chain before the result is added to a larger sum.
  /// Rounding errors grow with the longest chain: one chain of 2,049 terms would be several times
  /// less accurate.
  static constexpr int64_t kLongestChain = 64;
  /// NR of scores and dP, in vectors of queries.
  static constexpr int kScoreVecs = 3;
  /// MR of scores and dP, in keys, for NR = `vecs`.
  static constexpr int score_rows(int vecs) { return vecs == 3 ? 4 : vecs == 2 ? 6 : 8; }
  /// NR of O, dQ, dK and dV, in vectors of columns, and MR, in rows, for NR = `vecs`.
  static constexpr int kColumnVecs = 2;
  static constexpr int column_rows(int vecs) { return vecs == 2 ? 6 : 12; }
  /// Whether the sums of whole register blocks are unrolled by 4: 23 instructions for 12
  /// multiply-adds instead of 25. That matters on a core whose other hardware thread is busy, where
  /// three instructions a cycle are left.
  static constexpr bool kUnrollsTerms = true;
  /// Whether `exp2` rounds the exponent down (with `fraction`) or to nearest (with `round`).
  static constexpr bool kSplitsDown = false;
  /// Exponentials that are computed together, to hide their latency.
  static constexpr int kExpRows = 4;
};

// Masks of the first n lanes, loaded at an offset of n before the middle.
alignas(64) constexpr int32_t kFirst32[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                              0,  0,  0,  0,  0,  0,  0,  0};
alignas(64) constexpr int64_t kFirst64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

template <>
struct Vec<float> : Avx2Tiles {
  using Scalar = float;
  using Reg = __m256;
  using Mask = __m256i;
  static constexpr int kWidth = 8;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(float x) { return _mm256_set1_ps(x); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static Mask first(int64_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst32 + 8 - n));
  }
  static Reg load(const float* p, Mask mask) { return _mm256_maskload_ps(p, mask); }
  static void store(float* p, Reg x, Mask mask) { _mm256_maskstore_ps(p, mask, x); }
  /// x in the lanes of the mask, 0 in the others.
  static Reg only(Reg x, Mask mask) { return _mm256_and_ps(x, _mm256_castsi256_ps(mask)); }

  static Reg load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Reg load(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  /// Rounds like `round_to`.
  static void store(BFloat16* p, Reg x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, half), quiet, is_nan);
    const __m256i upper = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store(Half* p, Reg x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  /// Loads 2 * kWidth elements: those at even positions, and those at odd ones. Half as many
  /// instructions as two loads in order.
  static void load_even_odd(const BFloat16* p, Reg& even, Reg& odd) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    odd = _mm256_castsi256_ps(
        _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
  }
  /// even[0], odd[0], even[1], odd[1], …: replaces `even` by the first half, `odd` by the second.
  static void interleave(Reg& even, Reg& odd) {
    const Reg low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    even = _mm256_permute2f128_ps(low, high, 0x20);
    odd = _mm256_permute2f128_ps(low, high, 0x31);
  }

  // Words of two bfloat16, the first in the lower half, for tile_product.h. No arithmetic touches
  // their bits.
  static Reg load_words(const BFloat16* p) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_words(uint32_t* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castps_si256(x));
  }
  /// Words of even[i] and odd[i].
  static Reg load_pairs(const BFloat16* even, const BFloat16* odd) {
    const auto load = [](const BFloat16* p) __attribute__((always_inline)) {
      return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    };
    return _mm256_castsi256_ps(_mm256_or_si256(load(even), _mm256_slli_epi32(load(odd), 16)));
  }
  /// x, at most 2^127 and not NaN, rounded to bfloat16 as `pair` rounds.
  static Reg to_bfloat16(Reg x) {
    const __m256i half = _mm256_set1_epi32(0x8000);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_add_epi32(_mm256_castps_si256(x), half), upper));
  }
  /// Words of two floats, rounded to nearest and halves away from zero.
  static Reg pair(Reg even, Reg odd) {
    const __m256i half = _mm256_set1_epi32(0x8000);
    const __m256i low = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(even), half), 16);
    const __m256i high = _mm256_add_epi32(_mm256_castps_si256(odd), half);
    return _mm256_castsi256_ps(_mm256_blend_epi16(low, high, 0xAA));
  }

  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  /// `c` where `a` is -0, even if `b` is NaN; else `a * b + c`.
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    const __m256i skip = _mm256_cmpeq_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(1 << 31));
    return _mm256_fmadd_ps(a, _mm256_andnot_ps(_mm256_castsi256_ps(skip), b), c);
  }
  /// The maximum; `b` where either is NaN.
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg abs(Reg x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  /// Whether `a < b` in any lane; the comparison is false if either is NaN.
  static bool any_less(Reg a, Reg b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0;
  }
  /// `a < b ? x : y`.
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
  }
  /// `x` where the flag of the lane is true, else `y`.
  static Reg if_set(const bool* flags, Reg x, Reg y) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(flags));
    const __m256i clear = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_setzero_si256());
    return _mm256_blendv_ps(x, y, _mm256_castsi256_ps(clear));
  }
  /// `x` where the byte is `value`, else `y`.
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    const __m128i loaded = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    const __m256i same = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(loaded), _mm256_set1_epi32(value));
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(same));
  }
  /// `x` where the sign bit of `sign` is clear, else +0.
  static Reg if_positive(Reg sign, Reg x) { return _mm256_blendv_ps(x, zero(), sign); }
  /// `x` where the word of the lane is at least `threshold`, else +0.
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m256i larger = _mm256_max_epu32(word, _mm256_set1_epi32(static_cast<int>(threshold)));
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(larger, word)));
  }

  struct Rounded {
    Reg value;
    __m256i integer;
  };
  /// Rounds to the nearest integer. The integer for NaN has a low byte of 0, so that `scale` keeps
  /// NaN.
  static Rounded round(Reg x) {
    const __m256i n = _mm256_cvtps_epi32(x);
    return {_mm256_cvtepi32_ps(n), n};
  }
  /// x * 2^n by adding to the exponent; exact while the result is a normal number.
  static Reg scale(Reg x, Rounded n) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n.integer, 23)));
  }

  /// A step of a sum across the lanes of each of kWidth registers, as a binary tree: replaces two
  /// neighbors by one register. After steps 0 … log2(kWidth) - 1, lane i has the sum of register i.
  template <int kStep>
  static Reg add_across(Reg a, Reg b) {
    if constexpr (kStep == 0) {
      return add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    } else if constexpr (kStep == 1) {
      const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
      return add(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                 _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    } else {
      return add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
  }

  static void transpose(Reg (&r)[8]) {
    const Reg a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const Reg a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const Reg a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const Reg a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const Reg b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xEE);
    const Reg b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xEE);
    const Reg b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xEE);
    const Reg b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xEE);
    r[0] = _mm256_permute2f128_ps(b0, b4, 0x20), r[1] = _mm256_permute2f128_ps(b1, b5, 0x20);
    r[2] = _mm256_permute2f128_ps(b2, b6, 0x20), r[3] = _mm256_permute2f128_ps(b3, b7, 0x20);
    r[4] = _mm256_permute2f128_ps(b0, b4, 0x31), r[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[6] = _mm256_permute2f128_ps(b2, b6, 0x31), r[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
  }
};

template <>
struct Vec<double> : Avx2Tiles {
  using Scalar = double;
  using Reg = __m256d;
  using Mask = __m256i;
  static constexpr int kWidth = 4;

  static Reg zero() { return _mm256_setzero_pd(); }
  static Reg broadcast(double x) { return _mm256_set1_pd(x); }
  static Reg broadcast(const double* p) { return _mm256_broadcast_sd(p); }
  static Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Reg x) { _mm256_storeu_pd(p, x); }
  static Mask first(int64_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst64 + 4 - n));
  }
  static Reg load(const double* p, Mask mask) { return _mm256_maskload_pd(p, mask); }
  static void store(double* p, Reg x, Mask mask) { _mm256_maskstore_pd(p, mask, x); }
  static Reg only(Reg x, Mask mask) { return _mm256_and_pd(x, _mm256_castsi256_pd(mask)); }

  static Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_pd(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    const __m256i minus_zero = _mm256_castpd_si256(_mm256_set1_pd(-0.0));
    const __m256i skip = _mm256_cmpeq_epi64(_mm256_castpd_si256(a), minus_zero);
    return _mm256_fmadd_pd(a, _mm256_andnot_pd(_mm256_castsi256_pd(skip), b), c);
  }
  static Reg max(Reg a, Reg b) { return _mm256_max_pd(a, b); }
  static Reg abs(Reg x) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x); }
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
  }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_EQ_OQ));
  }
  static Reg if_set(const bool* flags, Reg x, Reg y) {
    const __m128i bytes = _mm_loadu_si32(flags);
    const __m256i clear = _mm256_cmpeq_epi64(_mm256_cvtepu8_epi64(bytes), _mm256_setzero_si256());
    return _mm256_blendv_pd(x, y, _mm256_castsi256_pd(clear));
  }
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    const __m256i wide = _mm256_cvtepu8_epi64(_mm_loadu_si32(bytes));
    const __m256i same = _mm256_cmpeq_epi64(wide, _mm256_set1_epi64x(value));
    return _mm256_blendv_pd(y, x, _mm256_castsi256_pd(same));
  }
  static Reg if_positive(Reg sign, Reg x) { return _mm256_blendv_pd(x, zero(), sign); }
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    const __m128i larger = _mm_max_epu32(word, _mm_set1_epi32(static_cast<int>(threshold)));
    const __m256i kept = _mm256_cvtepi32_epi64(_mm_cmpeq_epi32(larger, word));
    return _mm256_and_pd(x, _mm256_castsi256_pd(kept));
  }

  struct Rounded {
    Reg value;
    __m128i integer;
  };
  static Rounded round(Reg x) {
    const __m128i n = _mm256_cvtpd_epi32(x);
    return {_mm256_cvtepi32_pd(n), n};
  }
  static Reg scale(Reg x, Rounded n) {
    const __m256i wide = _mm256_cvtepi32_epi64(n.integer);
    return _mm256_castsi256_pd(
        _mm256_add_epi64(_mm256_castpd_si256(x), _mm256_slli_epi64(wide, 52)));
  }

  template <int kStep>
  static Reg add_across(Reg a, Reg b) {
    if constexpr (kStep == 0) {
      return add(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
    } else {
      return add(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
    }
  }

  static void transpose(Reg (&r)[4]) {
    const Reg a0 = _mm256_unpacklo_pd(r[0], r[1]), a1 = _mm256_unpackhi_pd(r[0], r[1]);
    const Reg a2 = _mm256_unpacklo_pd(r[2], r[3]), a3 = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a0, a2, 0x20), r[1] = _mm256_permute2f128_pd(a1, a3, 0x20);
    r[2] = _mm256_permute2f128_pd(a0, a2, 0x31), r[3] = _mm256_permute2f128_pd(a1, a3, 0x31);
  }
};

}  // namespace
}  // namespace flash
