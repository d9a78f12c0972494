// Measures the throughput of AMX's bfloat16 tiles on one core, as peak.cpp does for multiply-adds.
//
// bench/attention/peak.py calls it only where the kernels of this project run on tiles, which they
// have asked the operating system for.

#include <cstdint>

#include "csrc/amx/tiles.h"

#define FLASH_EXPORT extern "C" __attribute__((visibility("default")))

using flash::AmxTiles;

// Each step is one multiply-add into each of four tiles: one takes 52 cycles, and a core starts one
// every 16.
FLASH_EXPORT double fma_bfloat16_amx(int64_t steps) {
  const AmxTiles::Session session;
  AmxTiles::zero<4>();
  AmxTiles::zero<5>();
  AmxTiles::zero<6>();
  AmxTiles::zero<7>();
  for (int64_t step = 0; step < steps; step += 64) {  // 64 steps of the other loops are one here
    AmxTiles::multiply_add<0, 4, 6>();
    AmxTiles::multiply_add<1, 4, 7>();
    AmxTiles::multiply_add<2, 5, 6>();
    AmxTiles::multiply_add<3, 5, 7>();
  }
  return 0;
}

FLASH_EXPORT double fma_bfloat16_operations_amx() {
  constexpr double kMultiplyAdds = 4 * 16 * 16 * 32;
  return 2 * kMultiplyAdds / 64;
}
