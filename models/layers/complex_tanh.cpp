#include "layers/complex_tanh.h"

#include <bit>
#include <cmath>

#include "layers/function_clones.h"

namespace flash::models {
namespace {

template <class T>
struct Pair {
  T first, second;
};

/// {sinh x, cosh x} for |x| <= 20. float32: within 3 units in the last place.
inline __attribute__((always_inline)) Pair<float> sinh_cosh(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // the polynomial of Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float grown =
      std::bit_cast<float>(std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23));
  const float shrunk = 1.0f / grown;
  const float square = x * x;  // the difference of exponentials cancels where x is small
  float s = 2.7557319e-6f;
  s = s * square + 1.9841270e-4f;
  s = s * square + 8.3333333e-3f;
  s = s * square + 1.6666667e-1f;
  s = s * square * x + x;
  return {square < 1.0f ? s : 0.5f * (grown - shrunk), 0.5f * (grown + shrunk)};
}

inline __attribute__((always_inline)) Pair<double> sinh_cosh(double x) {
  return {std::sinh(x), std::cosh(x)};
}

/// {sin y, cos y}, up to one common sign, which the tangent does not see. float32: to within 1 unit
/// in the last place where |y| < 1e6; beyond, y itself is known to no more than a tenth of a turn.
inline __attribute__((always_inline)) Pair<float> sin_cos(float y) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kPi = 3.14159265358979323846;
  // In double: next to a pole all that matters is how far y is from it.
  const double wide = static_cast<double>(y);
  const double turns = (wide * (1.0 / kPi) + kRound) - kRound;
  const double r = wide - turns * kPi;  // within a quarter turn of 0
  const double square = r * r;
  double s = 1.6059043836821613e-10;  // Taylor's: the next terms are below 1e-9 at pi / 2
  s = s * square - 2.5052108385441720e-8;
  s = s * square + 2.7557319223985893e-6;
  s = s * square - 1.9841269841269841e-4;
  s = s * square + 8.3333333333333333e-3;
  s = s * square - 1.6666666666666667e-1;
  s = s * square * r + r;
  double c = -1.1470745597729725e-11;
  c = c * square + 2.0876756987868099e-9;
  c = c * square - 2.7557319223985888e-7;
  c = c * square + 2.4801587301587302e-5;
  c = c * square - 1.3888888888888889e-3;
  c = c * square + 4.1666666666666667e-2;
  c = c * square - 0.5;
  c = c * square + 1.0;
  return {static_cast<float>(s), static_cast<float>(c)};
}

inline __attribute__((always_inline)) Pair<double> sin_cos(double y) {
  return {std::sin(y), std::cos(y)};
}

template <class T>
inline __attribute__((always_inline)) void tanh_of(const T* x, const T* y, T* real, T* imaginary,
                                                   int64_t count) {
  constexpr T kLimit = 20;  // beyond, the tangent is +-1 to the last digit, its imaginary part 0
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T above = x[i] < -kLimit ? -kLimit : x[i];
    const auto [sinh, cosh] = sinh_cosh(above > kLimit ? kLimit : above);
    const auto [sin, cos] = sin_cos(y[i]);
    const T factor = T(1) / (sinh * sinh + cos * cos);
    real[i] = sinh * cosh * factor;
    imaginary[i] = sin * cos * factor;
  }
}

/// gradient * conj(1 - tanh^2)
template <class T>
inline __attribute__((always_inline)) void backward_of(const T* real, const T* imaginary,
                                                       const T* a, const T* b, T* x, T* y,
                                                       int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T p = T(1) - real[i] * real[i] + imaginary[i] * imaginary[i];
    const T q = T(2) * real[i] * imaginary[i];
    const T ga = a[i], gb = b[i];
    x[i] = ga * p - gb * q;
    y[i] = ga * q + gb * p;
  }
}

}  // namespace

#define FLASH_COMPLEX_TANH_LOOPS(T)                                                           \
  FLASH_FUNCTION_CLONES                                                                       \
  void complex_tanh(const T* in, T* out, int64_t count) {                                     \
    tanh_of(in, in + count, out, out + count, count);                                         \
  }                                                                                           \
  FLASH_FUNCTION_CLONES                                                                       \
  void complex_tanh_backward(const T* result, const T* gradient, T* out, int64_t count) {     \
    backward_of(result, result + count, gradient, gradient + count, out, out + count, count); \
  }
FLASH_COMPLEX_TANH_LOOPS(float)
FLASH_COMPLEX_TANH_LOOPS(double)

}  // namespace flash::models
