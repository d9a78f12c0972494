#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace flash {
namespace {

/// Flushes denormals to zero while it lives, and gives the thread its floating-point mode back.
/// A weight that underflows costs a hundred cycles per use otherwise: a causal backward ran at half
/// its speed. Rounding is to nearest inside, whatever the caller set.
class FlushDenormals {
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) {
    constexpr uint32_t kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040, kMaskExceptions = 0x1F80;
    _mm_setcsr(kFlushToZero | kDenormalsAreZero | kMaskExceptions);
  }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  uint32_t saved_;
#else
  FlushDenormals() = default;
  ~FlushDenormals() {}
#endif
};

}  // namespace
}  // namespace flash
