// Measures the throughput of AVX512-BF16's multiply-adds on one core, as peak.cpp does.
//
// bench/attention/peak.py calls it only on a CPU that has them.

#include <immintrin.h>

#include <cstdint>

#define FLASH_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
constexpr int kChains = 12;  // as in peak.cpp
}

FLASH_EXPORT double fma_bfloat16_avx512_bf16(int64_t steps) {
  const auto factor = (__m512bh)_mm512_set1_epi16(0x3C00);  // 2^-7, so that sums stay finite
  __m512 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
  }
  double total = 0;
  for (int i = 0; i < kChains; ++i) total += _mm512_cvtss_f32(sum[i]);
  return total;
}

// Two multiply-adds for each of sixteen lanes.
FLASH_EXPORT double fma_bfloat16_operations_avx512_bf16() { return 2.0 * kChains * 16 * 2; }
