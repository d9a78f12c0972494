#pragma once
// Compares the loads and stores of 16-bit types of one instruction set with the conversions of
// csrc/storage.h. Included by one file per instruction set, compiled with its flags.

#include <cstdint>

#include "csrc/denormals.h"
#include "csrc/storage.h"

namespace flash {

/// The number of values that are converted to different bits.
struct StorageReport {
  int64_t wrong_loads;   ///< of all 2^16 values
  int64_t wrong_stores;  ///< of floats with every exponent, including ties
};

StorageReport scalar_bfloat16();
StorageReport scalar_half();
StorageReport avx2_bfloat16();
StorageReport avx2_half();
StorageReport avx512_bfloat16();
StorageReport avx512_half();
StorageReport neon_bfloat16();
StorageReport neon_half();

namespace {

inline bool is_nan(float x) { return x != x; }

template <class V, class Stored>
StorageReport check_storage() {
  constexpr int W = V::kWidth;
  StorageReport report = {};
  const FlushDenormals flush;
  alignas(64) Stored stored[W];
  alignas(64) float floats[W];
  for (uint32_t first = 0; first < 1 << 16; first += W) {
    for (int i = 0; i < W; ++i)
      stored[i].bits = static_cast<uint16_t>(first + static_cast<uint32_t>(i));
    V::store(floats, V::load(stored));
    for (int i = 0; i < W; ++i) {
      const float expected = to_float(stored[i]);
      const bool same = is_nan(expected) ? is_nan(floats[i])
                                         : __builtin_bit_cast(uint32_t, floats[i]) ==
                                               __builtin_bit_cast(uint32_t, expected);
      report.wrong_loads += same ? 0 : 1;
    }
  }
  // The odd step covers every pattern of the low bits. The second pass tests ties only.
  for (const uint32_t low : {0u, 0x1000u}) {
    for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += W * 4099) {
      for (int i = 0; i < W; ++i) {
        const auto each = static_cast<uint32_t>(bits + static_cast<uint64_t>(i) * 4099);
        floats[i] = __builtin_bit_cast(float, low == 0 ? each : (each & 0xFFFFE000u) | low);
      }
      V::store(stored, V::load(floats));
      for (int i = 0; i < W; ++i) {
        Stored expected;
        round_to(floats[i], &expected);
        const bool same =
            is_nan(floats[i]) ? is_nan(to_float(stored[i])) : stored[i].bits == expected.bits;
        // A denormal float32 may be flushed to 0, which shows in bfloat16.
        const bool denormal = __builtin_fabsf(floats[i]) < 0x1p-126f;
        report.wrong_stores += same || denormal ? 0 : 1;
      }
    }
  }
  return report;
}

}  // namespace
}  // namespace flash
