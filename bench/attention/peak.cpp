// The peak rate of fused multiply-adds of one core.
//
// Compiled once per instruction set with its flags; FLASH_PEAK_ISA is its name. bench/run.py starts
// only instruction sets that this CPU supports. Each step does one multiply-add on each of kChains
// independent registers. A multiply-add takes four cycles and a core starts up to two per cycle, so
// eight chains suffice; twelve and the two factors still fit the sixteen registers of AVX2.

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kChains = 12;

#if defined(__AVX512F__)
struct Floats {
  using Vector = __m512;
  static Vector set(double x) { return _mm512_set1_ps(static_cast<float>(x)); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static double any(Vector a) { return _mm512_cvtss_f32(a); }
};
struct Doubles {
  using Vector = __m512d;
  static Vector set(double x) { return _mm512_set1_pd(x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
  static double any(Vector a) { return _mm512_cvtsd_f64(a); }
};
#else
struct Floats {
  using Vector = __m256;
  static Vector set(double x) { return _mm256_set1_ps(static_cast<float>(x)); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static double any(Vector a) { return _mm256_cvtss_f32(a); }
};
struct Doubles {
  using Vector = __m256d;
  static Vector set(double x) { return _mm256_set1_pd(x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  static double any(Vector a) { return _mm256_cvtsd_f64(a); }
};
#endif

// x -> x * 0.999 + 0.001 on every chain, `steps` times. It converges to 1, so no value becomes
// infinite or denormal, which is slow on some CPUs. The sum keeps the compiler from removing it.
template <class Lanes>
double chains(int64_t steps) {
  const typename Lanes::Vector factor = Lanes::set(0.999);
  const typename Lanes::Vector offset = Lanes::set(0.001);
  typename Lanes::Vector x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = Lanes::set(0.5 + 0.01 * i);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = Lanes::fma(x[i], factor, offset);
  }
  double total = 0;
  for (int i = 0; i < kChains; ++i) total += Lanes::any(x[i]);
  return total;
}

template <class Lanes, class Number>
double operations_per_step() {
  return 2.0 * kChains * sizeof(typename Lanes::Vector) / sizeof(Number);
}

}  // namespace

#define FLASH_JOIN2(a, b) a##b
#define FLASH_JOIN(a, b) FLASH_JOIN2(a, b)
#define FLASH_NAME(prefix) FLASH_JOIN(prefix, FLASH_PEAK_ISA)
#define FLASH_EXPORT extern "C" __attribute__((visibility("default")))

// fma_<dtype>_<isa>(steps) does the work. fma_<dtype>_operations_<isa>() is the number of
// operations per step; a multiply-add counts as two.
FLASH_EXPORT double FLASH_NAME(fma_float32_)(int64_t steps) { return chains<Floats>(steps); }
FLASH_EXPORT double FLASH_NAME(fma_float64_)(int64_t steps) { return chains<Doubles>(steps); }
FLASH_EXPORT double FLASH_NAME(fma_float32_operations_)() {
  return operations_per_step<Floats, float>();
}
FLASH_EXPORT double FLASH_NAME(fma_float64_operations_)() {
  return operations_per_step<Doubles, double>();
}
