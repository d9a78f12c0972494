#pragma once
// Products of bfloat16 on the vector registers of AVX-512, for CPUs without matrix tiles. VDPBF16PS
// multiplies twice as many elements as a multiply-add of float.

#include <immintrin.h>

#include <cstdint>

#include "csrc/generic/tile_product.h"

namespace flash {
namespace {

struct VectorTiles {
  /// The compiler takes AVX512-BF16 to include BW.
  static bool supported() {
    return __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  }

  /// Vector registers need no configuration.
  struct Session {
    Session() {}
  };

  /// tile_product, on a register block of kRows rows by kHalves vectors of lanes.
  template <int kHalves>
  static void product(LeftTiles left, const Word* right, int64_t rows, int64_t steps, float* sum,
                      int64_t stride, bool accumulate) {
    constexpr int64_t kRows = 8;
    for (int64_t r = 0; r < rows; r += kRows) {
      const char* from = left.data + r / kTileRows * left.row + r % kTileRows * kRowBytes;
      block<kRows, kHalves>(from, left.step, right, steps, sum + r * stride, stride, accumulate);
    }
  }

 private:
  static constexpr int64_t kRowBytes = kTileWords * static_cast<int64_t>(sizeof(Word));

  template <int kRows, int kHalves>
  static void block(const char* left, int64_t step, const Word* right, int64_t steps, float* sum,
                    int64_t stride, bool accumulate) {
    __m512 sums[kRows][kHalves];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        sums[r][h] =
            accumulate ? _mm512_loadu_ps(sum + r * stride + h * kTileRows) : _mm512_setzero_ps();
      }
    }
    for (int64_t n = 0; n < steps; ++n, left += step) {
      for (int64_t word = 0; word < kTileWords; ++word, right += kHalves * kTileRows) {
        __m512i columns[kHalves];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) columns[h] = _mm512_loadu_si512(right + h * kTileRows);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          int32_t pair;
          __builtin_memcpy(&pair, left + r * kRowBytes + word * 4, sizeof(pair));
          const auto row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
          for (int h = 0; h < kHalves; ++h) {
            sums[r][h] = _mm512_dpbf16_ps(sums[r][h], row, (__m512bh)columns[h]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        _mm512_storeu_ps(sum + r * stride + h * kTileRows, sums[r][h]);
      }
    }
  }
};

}  // namespace
}  // namespace flash
