#pragma once
// How one instruction set reads and writes 16-bit numbers, against the conversions of
// csrc/storage.h. Included by one file per instruction set, compiled with its flags.

#include <cstdint>

#include "csrc/denormals.h"
#include "csrc/storage.h"

namespace flash {

/// Numbers that come out with other bits.
struct StorageReport {
  int64_t wrong_reads;   ///< of all 2^16
  int64_t wrong_writes;  ///< of floats of every exponent, those halfway between two among them
};

StorageReport scalar_bfloat16();
StorageReport scalar_half();
StorageReport avx2_bfloat16();
StorageReport avx2_half();
StorageReport avx512_bfloat16();
StorageReport avx512_half();

namespace {

inline bool is_nan(float x) { return x != x; }

template <class V, class Narrow>
StorageReport check_storage() {
  constexpr int W = V::kWidth;
  StorageReport report = {};
  const FlushDenormals flush;
  alignas(64) Narrow narrow[W];
  alignas(64) float wide[W];
  for (uint32_t first = 0; first < 1 << 16; first += W) {
    for (int i = 0; i < W; ++i)
      narrow[i].bits = static_cast<uint16_t>(first + static_cast<uint32_t>(i));
    V::store(wide, V::load(narrow));
    for (int i = 0; i < W; ++i) {
      const float expected = to_float(narrow[i]);
      const bool same = is_nan(expected) ? is_nan(wide[i])
                                         : __builtin_bit_cast(uint32_t, wide[i]) ==
                                               __builtin_bit_cast(uint32_t, expected);
      report.wrong_reads += same ? 0 : 1;
    }
  }
  // An odd step meets every pattern of the low bits; the second pass only what lies halfway.
  for (const uint32_t low : {0u, 0x1000u}) {
    for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += W * 4099) {
      for (int i = 0; i < W; ++i) {
        const auto each = static_cast<uint32_t>(bits + static_cast<uint64_t>(i) * 4099);
        wide[i] = __builtin_bit_cast(float, low == 0 ? each : (each & 0xFFFFE000u) | low);
      }
      V::store(narrow, V::load(wide));
      for (int i = 0; i < W; ++i) {
        Narrow expected;
        round_to(wide[i], &expected);
        const bool same =
            is_nan(wide[i]) ? is_nan(to_float(narrow[i])) : narrow[i].bits == expected.bits;
        // A denormal float32 may be taken for 0, and bfloat16 can tell.
        const bool denormal = __builtin_fabsf(wide[i]) < 0x1p-126f;
        report.wrong_writes += same || denormal ? 0 : 1;
      }
    }
  }
  return report;
}

}  // namespace
}  // namespace flash
