#pragma once
// The vector interface of generic/ (csrc/README.md) for AVX-512 F and DQ. avx2/vec.h documents its
// members.

#include <immintrin.h>

#include <cstdint>

#include "csrc/storage.h"

namespace flash {
namespace {

template <class T>
struct Vec;

/// Counters for philox.h.
struct Avx512Counters {
  using Reg = __m512i;
  static constexpr int kWidth = 8;
  static Reg broadcast(uint32_t x) { return _mm512_set1_epi64(x); }
  static Reg sequence(uint32_t first) {
    return _mm512_add_epi64(broadcast(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Reg product(Reg a, Reg b) { return _mm512_mul_epu32(a, b); }
  static Reg high_half(Reg x) { return _mm512_srli_epi64(x, 32); }
  static Reg exclusive_or(Reg a, Reg b) { return _mm512_xor_si512(a, b); }
  static void store(uint32_t* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(x));
  }
  static void store_alternating(uint32_t* p, Reg even, Reg odd) {
    _mm512_storeu_si512(p, _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
  }
};

// Register blocks for thirty-two registers; broadcasts are operands of the multiply-add.
struct Avx512Tiles {
  using Counters = Avx512Counters;
  static constexpr int64_t kLongestChain = 64;
  static constexpr int kScoreVecs = 3;
  static constexpr int score_rows(int vecs) { return vecs == 3 ? 8 : vecs == 2 ? 12 : 16; }
  static constexpr int kColumnVecs = 4;
  static constexpr int column_rows(int vecs) {
    return vecs == 4 ? 6 : vecs == 3 ? 8 : vecs == 2 ? 12 : 16;
  }
  static constexpr bool kUnrollsTerms = true;
  static constexpr bool kSplitsDown = true;
  static constexpr int kExpRows = 8;
};

template <>
struct Vec<float> : Avx512Tiles {
  using Scalar = float;
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg broadcast(float x) { return _mm512_set1_ps(x); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Mask first(int64_t n) { return static_cast<Mask>((1u << n) - 1); }
  static Reg load(const float* p, Mask mask) { return _mm512_maskz_loadu_ps(mask, p); }
  static void store(float* p, Reg x, Mask mask) { _mm512_mask_storeu_ps(p, mask, x); }
  static Reg only(Reg x, Mask mask) { return _mm512_maskz_mov_ps(mask, x); }

  static Reg load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Reg load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(BFloat16* p, Reg x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, half), is_nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static void store(Half* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static void load_even_odd(const BFloat16* p, Reg& even, Reg& odd) {
    const __m512i words = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    odd = _mm512_castsi512_ps(
        _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
  }
  static void interleave(Reg& even, Reg& odd) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const Reg first = _mm512_permutex2var_ps(even, low, odd);
    odd = _mm512_permutex2var_ps(even, high, odd);
    even = first;
  }

  static Reg load_words(const BFloat16* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static void store_words(uint32_t* p, Reg x) { _mm512_storeu_si512(p, _mm512_castps_si512(x)); }
  static Reg load_pairs(const BFloat16* even, const BFloat16* odd) {
    const auto load = [](const BFloat16* p) __attribute__((always_inline)) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    };
    return _mm512_castsi512_ps(_mm512_or_si512(load(even), _mm512_slli_epi32(load(odd), 16)));
  }
  static Reg to_bfloat16(Reg x) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper));
  }
  static Reg pair(Reg even, Reg odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(low, high, upper, 0xF8));  // low | (high & upper)
  }

  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    const __m512i minus_zero = _mm512_castps_si512(_mm512_set1_ps(-0.0f));
    const Mask keep = _mm512_cmpneq_epi32_mask(_mm512_castps_si512(a), minus_zero);
    return _mm512_mask3_fmadd_ps(a, b, c, keep);
  }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg abs(Reg x) { return _mm512_abs_ps(x); }
  static bool any_less(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), y, x);
  }
  static Reg if_set(const bool* flags, Reg x, Reg y) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(flags));
    const __m512i wide = _mm512_cvtepu8_epi32(bytes);
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(wide, wide), y, x);
  }
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    const __m512i wide = _mm512_cvtepu8_epi32(loaded);
    return _mm512_mask_blend_ps(_mm512_cmpeq_epi32_mask(wide, _mm512_set1_epi32(value)), y, x);
  }
  static Reg if_positive(Reg sign, Reg x) {
    return _mm512_maskz_mov_ps(_knot_mask16(_mm512_movepi32_mask(_mm512_castps_si512(sign))), x);
  }
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    const __m512i limit = _mm512_set1_epi32(static_cast<int>(threshold));
    return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(_mm512_loadu_si512(words), limit), x);
  }

  /// x - floor(x), in [0, 1); 0 for Inf.
  static Reg fraction(Reg x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); }
  /// x * 2^floor(n), 0 for n = -inf.
  static Reg scale(Reg x, Reg n) { return _mm512_scalef_ps(x, n); }

  template <int kStep>
  static Reg add_across(Reg a, Reg b) {
    if constexpr (kStep == 0) {
      return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    } else if constexpr (kStep == 1) {
      const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
      return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                 _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    } else {
      return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    }
  }

  static void transpose(Reg (&r)[16]) {
    Reg a[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // b[4 g + k]: column k of every 128-bit lane, of rows 4 g … 4 g + 3.
    Reg b[16];
#pragma GCC unroll 4
    for (int g = 0; g < 16; g += 4) {
      b[g] = _mm512_shuffle_ps(a[g], a[g + 2], 0x44);
      b[g + 1] = _mm512_shuffle_ps(a[g], a[g + 2], 0xEE);
      b[g + 2] = _mm512_shuffle_ps(a[g + 1], a[g + 3], 0x44);
      b[g + 3] = _mm512_shuffle_ps(a[g + 1], a[g + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Reg even_low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0x88);
      const Reg odd_low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0xDD);
      const Reg even_high = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88);
      const Reg odd_high = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xDD);
      r[k] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      r[8 + k] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
      r[4 + k] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      r[12 + k] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
  }
};

template <>
struct Vec<double> : Avx512Tiles {
  using Scalar = double;
  using Reg = __m512d;
  using Mask = __mmask8;
  static constexpr int kWidth = 8;

  static Reg zero() { return _mm512_setzero_pd(); }
  static Reg broadcast(double x) { return _mm512_set1_pd(x); }
  static Reg broadcast(const double* p) { return _mm512_set1_pd(*p); }
  static Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Reg x) { _mm512_storeu_pd(p, x); }
  static Mask first(int64_t n) { return static_cast<Mask>((1u << n) - 1); }
  static Reg load(const double* p, Mask mask) { return _mm512_maskz_loadu_pd(mask, p); }
  static void store(double* p, Reg x, Mask mask) { _mm512_mask_storeu_pd(p, mask, x); }
  static Reg only(Reg x, Mask mask) { return _mm512_maskz_mov_pd(mask, x); }

  static Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_pd(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    const __m512i minus_zero = _mm512_castpd_si512(_mm512_set1_pd(-0.0));
    const Mask keep = _mm512_cmpneq_epi64_mask(_mm512_castpd_si512(a), minus_zero);
    return _mm512_mask3_fmadd_pd(a, b, c, keep);
  }
  static Reg max(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  static Reg abs(Reg x) { return _mm512_abs_pd(x); }
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), y, x);
  }
  static Reg if_set(const bool* flags, Reg x, Reg y) {
    const __m512i wide = _mm512_cvtepu8_epi64(_mm_loadu_si64(flags));
    return _mm512_mask_blend_pd(_mm512_test_epi64_mask(wide, wide), y, x);
  }
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    const __m512i wide = _mm512_cvtepu8_epi64(_mm_loadu_si64(bytes));
    return _mm512_mask_blend_pd(_mm512_cmpeq_epi64_mask(wide, _mm512_set1_epi64(value)), y, x);
  }
  static Reg if_positive(Reg sign, Reg x) {
    return _mm512_maskz_mov_pd(_knot_mask8(_mm512_movepi64_mask(_mm512_castpd_si512(sign))), x);
  }
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m512i limit = _mm512_set1_epi64(threshold);
    return _mm512_maskz_mov_pd(_mm512_cmpge_epu64_mask(_mm512_cvtepu32_epi64(word), limit), x);
  }

  static Reg fraction(Reg x) { return _mm512_reduce_pd(x, _MM_FROUND_TO_NEG_INF); }
  static Reg scale(Reg x, Reg n) { return _mm512_scalef_pd(x, n); }

  template <int kStep>
  static Reg add_across(Reg a, Reg b) {
    if constexpr (kStep == 0) {
      return add(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    } else {
      return add(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xDD));
    }
  }

  static void transpose(Reg (&r)[8]) {
    Reg a[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      a[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const Reg even_low = _mm512_shuffle_f64x2(a[k], a[2 + k], 0x88);
      const Reg odd_low = _mm512_shuffle_f64x2(a[k], a[2 + k], 0xDD);
      const Reg even_high = _mm512_shuffle_f64x2(a[4 + k], a[6 + k], 0x88);
      const Reg odd_high = _mm512_shuffle_f64x2(a[4 + k], a[6 + k], 0xDD);
      r[k] = _mm512_shuffle_f64x2(even_low, even_high, 0x88);
      r[4 + k] = _mm512_shuffle_f64x2(even_low, even_high, 0xDD);
      r[2 + k] = _mm512_shuffle_f64x2(odd_low, odd_high, 0x88);
      r[6 + k] = _mm512_shuffle_f64x2(odd_low, odd_high, 0xDD);
    }
  }
};

}  // namespace
}  // namespace flash
