#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace flash {
namespace {

/// Flushes denormals to zero and rounds to nearest during its lifetime; restores the thread's
/// floating-point mode afterwards. A denormal weight costs a hundred cycles per use: without
/// flushing, a causal backward ran at half speed.
class FlushDenormals {
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
#if defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    constexpr uint64_t kFlushToZero = uint64_t{1} << 24;  // with exceptions masked by zeros
    asm volatile("msr fpcr, %0" : : "r"(kFlushToZero) : "memory");
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

 private:
  uint64_t saved_;
#elif defined(__SSE2__)
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
