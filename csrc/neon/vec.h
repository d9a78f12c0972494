#pragma once
// The vector interface of generic/ (csrc/README.md) for NEON, which every aarch64 CPU has.
// avx2/vec.h documents its members.

#include <arm_neon.h>

#include <cstdint>

#include "csrc/storage.h"

namespace flash {
namespace {

template <class T>
struct Vec;

/// Counters for philox.h.
struct NeonCounters {
  using Reg = uint64x2_t;
  static constexpr int kWidth = 2;
  static Reg broadcast(uint32_t x) { return vdupq_n_u64(x); }
  static Reg sequence(uint32_t first) {
    return vaddq_u64(broadcast(first), vcombine_u64(vcreate_u64(0), vcreate_u64(1)));
  }
  static Reg product(Reg a, Reg b) { return vmull_u32(vmovn_u64(a), vmovn_u64(b)); }
  static Reg high_half(Reg x) { return vshrq_n_u64(x, 32); }
  static Reg exclusive_or(Reg a, Reg b) { return veorq_u64(a, b); }
  static void store(uint32_t* p, Reg x) { vst1_u32(p, vmovn_u64(x)); }
  static void store_alternating(uint32_t* p, Reg even, Reg odd) {
    vst1q_u32(p, vreinterpretq_u32_u64(vsliq_n_u64(even, odd, 32)));
  }
};

// Register blocks for thirty-two registers, of which broadcasts take one.
struct NeonTiles {
  using Counters = NeonCounters;
  static constexpr int64_t kLongestChain = 64;
  static constexpr int kScoreVecs = 3;
  static constexpr int score_rows(int vecs) { return vecs == 3 ? 8 : vecs == 2 ? 12 : 16; }
  static constexpr int kColumnVecs = 4;
  static constexpr int column_rows(int vecs) {
    return vecs == 4 ? 6 : vecs == 3 ? 8 : vecs == 2 ? 12 : 16;
  }
  static constexpr bool kUnrollsTerms = false;
  static constexpr bool kSplitsDown = false;
  static constexpr int kExpRows = 4;
};

/// The first `lanes` lanes. NEON has no masked loads and stores: a remainder is accessed in parts.
struct NeonMask {
  int64_t lanes;
};

template <>
struct Vec<float> : NeonTiles {
  using Scalar = float;
  using Reg = float32x4_t;
  using Mask = NeonMask;
  static constexpr int kWidth = 4;

  static Reg zero() { return vdupq_n_f32(0); }
  static Reg broadcast(float x) { return vdupq_n_f32(x); }
  static Reg broadcast(const float* p) { return vld1q_dup_f32(p); }
  static Reg load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Reg x) { vst1q_f32(p, x); }
  static Mask first(int64_t n) { return {n}; }
  static Reg load(const float* p, Mask mask) {
    const float32x2_t none = vdup_n_f32(0);
    switch (mask.lanes) {
      case 0:
        return zero();
      case 1:
        return vcombine_f32(vld1_lane_f32(p, none, 0), none);
      case 2:
        return vcombine_f32(vld1_f32(p), none);
      case 3:
        return vcombine_f32(vld1_f32(p), vld1_lane_f32(p + 2, none, 0));
      default:
        return load(p);
    }
  }
  static void store(float* p, Reg x, Mask mask) {
    switch (mask.lanes) {
      case 0:
        return;
      case 1:
        return vst1q_lane_f32(p, x, 0);
      case 2:
        return vst1_f32(p, vget_low_f32(x));
      case 3:
        vst1_f32(p, vget_low_f32(x));
        return vst1q_lane_f32(p + 2, x, 2);
      default:
        return store(p, x);
    }
  }
  static Reg only(Reg x, Mask mask) {
    constexpr uint32_t kLanes[] = {0, 1, 2, 3};
    const uint32x4_t count = vdupq_n_u32(static_cast<uint32_t>(mask.lanes));
    return only_if(vcltq_u32(vld1q_u32(kLanes), count), x);
  }

  static Reg load(const BFloat16* p) {
    return from_bits(vshlq_n_u32(vmovl_u16(vld1_u16(&p->bits)), 16));
  }
  // FlushDenormals sets the rounding mode of conversions; it does not flush the denormals of Half.
  static Reg load(const Half* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
  static void store(Half* p, Reg x) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
  static void store(BFloat16* p, Reg x) {
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits(x), 16), vdupq_n_u32(1));
    const uint32x4_t half = vaddq_u32(odd, vdupq_n_u32(0x7FFF));
    const uint32x4_t quiet = vorrq_u32(bits(x), vdupq_n_u32(0x400000));
    const uint32x4_t rounded = vbslq_u32(vceqq_f32(x, x), vaddq_u32(bits(x), half), quiet);
    vst1_u16(&p->bits, vshrn_n_u32(rounded, 16));
  }

  static Reg load_words(const BFloat16* p) { return vreinterpretq_f32_u16(vld1q_u16(&p->bits)); }
  static void store_words(uint32_t* p, Reg x) { vst1q_u32(p, bits(x)); }
  static void load_even_odd(const BFloat16* p, Reg& even, Reg& odd) {
    const uint32x4_t words = vreinterpretq_u32_u16(vld1q_u16(&p->bits));
    even = from_bits(vshlq_n_u32(words, 16));
    odd = from_bits(vandq_u32(words, vdupq_n_u32(0xFFFF0000)));
  }
  static void interleave(Reg& even, Reg& odd) {
    const Reg low = vzip1q_f32(even, odd);
    odd = vzip2q_f32(even, odd);
    even = low;
  }

  static Reg load_pairs(const BFloat16* even, const BFloat16* odd) {
    const uint16x4x2_t pairs = vzip_u16(vld1_u16(&even->bits), vld1_u16(&odd->bits));
    return vreinterpretq_f32_u16(vcombine_u16(pairs.val[0], pairs.val[1]));
  }
  static Reg to_bfloat16(Reg x) {
    return from_bits(vandq_u32(vaddq_u32(bits(x), vdupq_n_u32(0x8000)), vdupq_n_u32(0xFFFF0000)));
  }
  static Reg pair(Reg even, Reg odd) {
    const uint32x4_t half = vdupq_n_u32(0x8000);
    return from_bits(vsriq_n_u32(vaddq_u32(bits(odd), half), vaddq_u32(bits(even), half), 16));
  }

  static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg div(Reg a, Reg b) { return vdivq_f32(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    const uint32x4_t skip = vceqq_u32(bits(a), vdupq_n_u32(uint32_t{1} << 31));
    return vfmaq_f32(c, a, from_bits(vbicq_u32(bits(b), skip)));
  }
  // Not vmaxq_f32, which is NaN where `a` is.
  static Reg max(Reg a, Reg b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Reg abs(Reg x) { return vabsq_f32(x); }
  static bool any_less(Reg a, Reg b) { return vmaxvq_u32(vcltq_f32(a, b)) != 0; }
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) { return vbslq_f32(vceqq_f32(a, b), x, y); }
  static Reg if_set(const bool* flags, Reg x, Reg y) {
    return vbslq_f32(vceqq_u32(load_bytes(flags), vdupq_n_u32(0)), y, x);
  }
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    return vbslq_f32(vceqq_u32(load_bytes(bytes), vdupq_n_u32(value)), x, y);
  }
  static Reg if_positive(Reg sign, Reg x) {
    return only_if(vcgezq_s32(vreinterpretq_s32_f32(sign)), x);
  }
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    return only_if(vcgeq_u32(vld1q_u32(words), vdupq_n_u32(threshold)), x);
  }

  struct Rounded {
    Reg value;
    int32x4_t integer;
  };
  // The integer for NaN is 0.
  static Rounded round(Reg x) {
    const int32x4_t n = vcvtnq_s32_f32(x);
    return {vcvtq_f32_s32(n), n};
  }
  static Reg scale(Reg x, Rounded n) {
    return from_bits(vaddq_u32(bits(x), vreinterpretq_u32_s32(vshlq_n_s32(n.integer, 23))));
  }

  template <int kStep>
  static Reg add_across(Reg a, Reg b) {
    return vpaddq_f32(a, b);
  }

  static void transpose(Reg (&r)[4]) {
    const auto pairs = [](Reg a, Reg b) { return vreinterpretq_f64_f32(vtrn1q_f32(a, b)); };
    const auto next_pairs = [](Reg a, Reg b) { return vreinterpretq_f64_f32(vtrn2q_f32(a, b)); };
    const float64x2_t a0 = pairs(r[0], r[1]), a1 = next_pairs(r[0], r[1]);
    const float64x2_t a2 = pairs(r[2], r[3]), a3 = next_pairs(r[2], r[3]);
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a0, a2));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(a1, a3));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a0, a2));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(a1, a3));
  }

 private:
  static uint32x4_t bits(Reg x) { return vreinterpretq_u32_f32(x); }
  static Reg from_bits(uint32x4_t x) { return vreinterpretq_f32_u32(x); }
  /// `x` where the mask is set, else +0.
  static Reg only_if(uint32x4_t mask, Reg x) { return from_bits(vandq_u32(mask, bits(x))); }
  /// One byte per lane, widened.
  static uint32x4_t load_bytes(const void* p) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
  }
};

template <>
struct Vec<double> : NeonTiles {
  using Scalar = double;
  using Reg = float64x2_t;
  using Mask = NeonMask;
  static constexpr int kWidth = 2;

  static Reg zero() { return vdupq_n_f64(0); }
  static Reg broadcast(double x) { return vdupq_n_f64(x); }
  static Reg broadcast(const double* p) { return vld1q_dup_f64(p); }
  static Reg load(const double* p) { return vld1q_f64(p); }
  static void store(double* p, Reg x) { vst1q_f64(p, x); }
  static Mask first(int64_t n) { return {n}; }
  static Reg load(const double* p, Mask mask) {
    switch (mask.lanes) {
      case 0:
        return zero();
      case 1:
        return vcombine_f64(vld1_f64(p), vdup_n_f64(0));
      default:
        return load(p);
    }
  }
  static void store(double* p, Reg x, Mask mask) {
    switch (mask.lanes) {
      case 0:
        return;
      case 1:
        return vst1q_lane_f64(p, x, 0);
      default:
        return store(p, x);
    }
  }
  static Reg only(Reg x, Mask mask) {
    constexpr uint64_t kLanes[] = {0, 1};
    const uint64x2_t count = vdupq_n_u64(static_cast<uint64_t>(mask.lanes));
    return only_if(vcltq_u64(vld1q_u64(kLanes), count), x);
  }

  static Reg add(Reg a, Reg b) { return vaddq_f64(a, b); }
  static Reg sub(Reg a, Reg b) { return vsubq_f64(a, b); }
  static Reg mul(Reg a, Reg b) { return vmulq_f64(a, b); }
  static Reg div(Reg a, Reg b) { return vdivq_f64(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f64(c, a, b); }
  static Reg fma_unless_minus_zero(Reg a, Reg b, Reg c) {
    const uint64x2_t skip = vceqq_u64(bits(a), vdupq_n_u64(uint64_t{1} << 63));
    return vfmaq_f64(c, a, from_bits(vbicq_u64(bits(b), skip)));
  }
  static Reg max(Reg a, Reg b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
  static Reg abs(Reg x) { return vabsq_f64(x); }
  static Reg if_less(Reg a, Reg b, Reg x, Reg y) { return vbslq_f64(vcltq_f64(a, b), x, y); }
  static Reg if_equal(Reg a, Reg b, Reg x, Reg y) { return vbslq_f64(vceqq_f64(a, b), x, y); }
  static Reg if_set(const bool* flags, Reg x, Reg y) {
    return vbslq_f64(vceqq_u64(load_bytes(flags), vdupq_n_u64(0)), y, x);
  }
  static Reg if_byte(const uint8_t* bytes, uint8_t value, Reg x, Reg y) {
    return vbslq_f64(vceqq_u64(load_bytes(bytes), vdupq_n_u64(value)), x, y);
  }
  static Reg if_positive(Reg sign, Reg x) {
    return only_if(vcgezq_s64(vreinterpretq_s64_f64(sign)), x);
  }
  static Reg if_at_least(const uint32_t* words, uint32_t threshold, Reg x) {
    return only_if(vcgeq_u64(vmovl_u32(vld1_u32(words)), vdupq_n_u64(threshold)), x);
  }

  struct Rounded {
    Reg value;
    int64x2_t integer;
  };
  static Rounded round(Reg x) {
    const int64x2_t n = vcvtnq_s64_f64(x);
    return {vcvtq_f64_s64(n), n};
  }
  static Reg scale(Reg x, Rounded n) {
    return from_bits(vaddq_u64(bits(x), vreinterpretq_u64_s64(vshlq_n_s64(n.integer, 52))));
  }

  template <int kStep>
  static Reg add_across(Reg a, Reg b) {
    return vpaddq_f64(a, b);
  }

  static void transpose(Reg (&r)[2]) {
    const Reg first = vtrn1q_f64(r[0], r[1]);
    r[1] = vtrn2q_f64(r[0], r[1]);
    r[0] = first;
  }

 private:
  static uint64x2_t bits(Reg x) { return vreinterpretq_u64_f64(x); }
  static Reg from_bits(uint64x2_t x) { return vreinterpretq_f64_u64(x); }
  static Reg only_if(uint64x2_t mask, Reg x) { return from_bits(vandq_u64(mask, bits(x))); }
  static uint64x2_t load_bytes(const void* p) {
    uint16_t bytes;
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    return vmovl_u32(vget_low_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))))));
  }
};

}  // namespace
}  // namespace flash
