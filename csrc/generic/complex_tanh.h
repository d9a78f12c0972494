#pragma once
// The hyperbolic tangent of complex numbers, stored as `count` real parts followed by `count`
// imaginary parts. `out` may alias an input.

#include "csrc/denormals.h"
#include "csrc/generic/lanes.h"
#include "csrc/generic/product.h"
#include "csrc/generic/tanh.h"

namespace flash {
namespace {

// sin(y) and cos(y), up to a common sign, which cancels in the tangent.

/// Within 1 ulp for |y| < 1e6. For larger |y|, y itself is known only to a tenth of a turn.
inline void sin_cos(const float* y, float* sin, float* cos, int64_t count) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kPi = 3.14159265358979323846;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    // In double: next to a pole, the result depends on the distance of y from it.
    const double wide = static_cast<double>(y[i]);
    const double turns = fused(wide, 1.0 / kPi, kRound) - kRound;
    const double r = fused(turns, -kPi, wide);  // within a quarter turn of 0
    const double square = r * r;
    double s = 1.6059043836821613e-10;  // Taylor series; the next terms are below 1e-9 at pi / 2
    s = fused(s, square, -2.5052108385441720e-8);
    s = fused(s, square, 2.7557319223985893e-6);
    s = fused(s, square, -1.9841269841269841e-4);
    s = fused(s, square, 8.3333333333333333e-3);
    s = fused(s, square, -1.6666666666666667e-1);
    s = fused(s * square, r, r);
    double c = -1.1470745597729725e-11;
    c = fused(c, square, 2.0876756987868099e-9);
    c = fused(c, square, -2.7557319223985888e-7);
    c = fused(c, square, 2.4801587301587302e-5);
    c = fused(c, square, -1.3888888888888889e-3);
    c = fused(c, square, 4.1666666666666667e-2);
    c = fused(c, square, -0.5);
    c = fused(c, square, 1.0);
    sin[i] = static_cast<float>(s);
    cos[i] = static_cast<float>(c);
  }
}

inline void sin_cos(const double* y, double* sin, double* cos, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    sin[i] = __builtin_sin(y[i]);
    cos[i] = __builtin_cos(y[i]);
  }
}

/// tanh(x + iy) = (sinh x cosh x + i sin y cos y) / (sinh^2 x + cos^2 y). No term cancels or
/// overflows. The error is a few machine epsilons of |result|, except next to the poles
/// i (pi/2 + k pi), where the function itself is ill-conditioned.
template <class V>
void complex_tanh(const typename V::Scalar* in, typename V::Scalar* out, int64_t count) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int64_t kBlock = 64;
  const FlushDenormals flush;
  const Reg one = V::broadcast(T(1)), half = V::broadcast(T(0.5));
  const Reg limit = V::broadcast(T(20));  // the result is +-1 for larger |x|
  alignas(64) T sin[kBlock], cos[kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t columns = min_of(kBlock, count - first);
    const T* const x = in + first;
    T *const real = out + first, *const imaginary = real + count;
    sin_cos(x + count, sin, cos, columns);
    for_lanes<V>(
        columns, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg argument = lanes.load(x + c);
          const Reg size = V::if_less(limit, V::abs(argument), limit, V::abs(argument));
          Reg e[1] = {V::sub(V::zero(), size)};
          exp<V>(e);
          const Reg grown = V::div(half, e[0]), shrunk = V::mul(half, e[0]);
          // Near 0 the exponentials cancel: sinh(x) = 2 t / (1 - t^2) with t = tanh(x / 2).
          const Reg t = tanh_near_zero<V>(V::mul(half, size));
          const Reg near = V::div(V::add(t, t), V::sub(one, V::mul(t, t)));
          const Reg sinh = V::if_less(size, one, near, V::sub(grown, shrunk));
          const Reg cosh = V::add(grown, shrunk);
          const Reg s = V::load(sin + c), k = V::load(cos + c);
          const Reg factor = V::div(one, V::fma(sinh, sinh, V::mul(k, k)));
          const Reg positive = V::mul(V::mul(sinh, cosh), factor);
          lanes.store(real + c,
                      V::if_less(argument, V::zero(), V::sub(V::zero(), positive), positive));
          lanes.store(imaginary + c, V::mul(V::mul(s, k), factor));
        });
  }
}

/// out = gradient * conj(1 - result^2), where `result` is the output of complex_tanh.
template <class V>
void complex_tanh_backward(const typename V::Scalar* result, const typename V::Scalar* gradient,
                           typename V::Scalar* out, int64_t count) {
  using Reg = typename V::Reg;
  const Reg one = V::broadcast(typename V::Scalar(1));
  for_lanes<V>(
      count, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        const Reg real = lanes.load(result + c), imaginary = lanes.load(result + count + c);
        const Reg a = lanes.load(gradient + c), b = lanes.load(gradient + count + c);
        const Reg p = V::fma(imaginary, imaginary, V::sub(one, V::mul(real, real)));
        const Reg q = V::mul(V::add(real, real), imaginary);
        lanes.store(out + c, V::sub(V::mul(a, p), V::mul(b, q)));
        lanes.store(out + count + c, V::fma(a, q, V::mul(b, p)));
      });
}

}  // namespace
}  // namespace flash
