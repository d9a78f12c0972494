#pragma once
// Loops over a row of any width, one vector at a time.

#include <cstdint>

namespace flash {
namespace {

/// All lanes of a vector.
template <class V>
struct AllLanes {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  static Reg load(const T* p) { return V::load(p); }
  static void store(T* p, Reg x) { V::store(p, x); }
  static Reg only(Reg x) { return x; }
};

/// Copies `count` < 2 * kMax elements.
template <int kMax, class T>
[[gnu::always_inline]] inline void copy_first(const T* from, T* to, int64_t count) {
  if (count & kMax) {
    __builtin_memcpy(to, from, kMax * sizeof(T));
    from += kMax, to += kMax;
  }
  if constexpr (kMax > 1) copy_first<kMax / 2>(from, to, count);
}

/// The first `count` lanes of a vector. The others load as 0 and are not stored.
template <class V>
struct FirstLanes {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  int64_t count;
  typename V::Mask mask;
  explicit FirstLanes(int64_t n) : count(n), mask(V::first(n)) {}
  Reg load(const T* p) const { return V::load(p, mask); }
  /// Stores in pieces: a masked store is microcoded on Zen and takes as long as the rest of a short
  /// row.
  void store(T* p, Reg x) const {
    alignas(64) T lanes[V::kWidth];
    V::store(lanes, x);
    copy_first<V::kWidth / 2>(lanes, p, count);
  }
  /// x in these lanes, 0 in the others.
  Reg only(Reg x) const { return V::only(x, mask); }
};

/// Calls f(c, lanes) for every vector of columns: `lanes` accesses columns c, c + 1, ….
template <class V, class F>
[[gnu::always_inline]] inline void for_lanes(int64_t columns, F&& f) {
  int64_t c = 0;
#pragma GCC unroll 2
  for (; c + V::kWidth <= columns; c += V::kWidth) f(c, AllLanes<V>{});
  if constexpr (V::kWidth > 1) {
    if (c < columns) f(c, FirstLanes<V>(columns - c));
  }
}

// a * b + c, rounded once if the target has the instruction; for loops that the compiler
// vectorizes.
#ifdef __FP_FAST_FMA
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float fused(float a, float b, float c) { return a * b + c; }
inline double fused(double a, double b, double c) { return a * b + c; }
#endif

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

/// The sum of the lanes of a register.
template <class V>
inline typename V::Scalar sum_of_lanes(typename V::Reg x) {
  alignas(64) typename V::Scalar lanes[V::kWidth];
  V::store(lanes, x);
  typename V::Scalar sum = 0;
  for (int i = 0; i < V::kWidth; ++i) sum += lanes[i];
  return sum;
}

}  // namespace
}  // namespace flash
