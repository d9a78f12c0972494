// Measures the fused multiply-add throughput of one core, the peak that `bench/run.py` reports.
//
// Compiled once per instruction set with its flags and its name as FLASH_PEAK_ISA;
// bench/attention/peak.py loads it after checking that the CPU supports it. Each step is one
// multiply-add on each of kChains independent registers. A multiply-add takes four cycles and a
// core starts up to two per cycle, so eight chains would suffice; twelve chains and two constants
// fit the sixteen registers of AVX2.

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

// Applies x = x * 0.999 + 0.001 to every chain, `steps` times. x converges to 1, so no value
// becomes infinite or denormal, which would be slow on some CPUs. Returning the sum keeps the
// compiler from removing the loop.
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

// fma_<dtype>_<isa>(steps) runs the loop; fma_<dtype>_operations_<isa>() returns the operations per
// step, two for each multiply-add.
FLASH_EXPORT double FLASH_NAME(fma_float32_)(int64_t steps) { return chains<Floats>(steps); }
FLASH_EXPORT double FLASH_NAME(fma_float64_)(int64_t steps) { return chains<Doubles>(steps); }
FLASH_EXPORT double FLASH_NAME(fma_float32_operations_)() {
  return operations_per_step<Floats, float>();
}
FLASH_EXPORT double FLASH_NAME(fma_float64_operations_)() {
  return operations_per_step<Doubles, double>();
}
