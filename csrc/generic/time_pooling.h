#pragma once
// Max-pooling over time with kernel size 3, stride 2 and padding 1.

#include "csrc/generic/lanes.h"

namespace flash {
namespace {

/// One window of three rows; kBefore and kAfter: whether its first and last row exist. `which` is
/// the index (0, 1 or 2) of the first maximum. NaN is larger than every number, as in torch.
template <bool kBefore, bool kAfter, class T>
inline void pool_row(const T* middle, T* out, uint8_t* which, int64_t width) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; ++i) {
    const T second = middle[i];
    T largest = second;
    uint8_t index = 1;
    if constexpr (kBefore) {
      const T first = middle[i - width];
      const bool stays = !(second > first || second != second);
      largest = stays ? first : second;
      index = stays ? 0 : 1;
    }
    if constexpr (kAfter) {
      const T third = middle[i + width];
      const bool moves = third > largest || third != third;
      largest = moves ? third : largest;
      index = moves ? 2 : index;
    }
    out[i] = largest;
    which[i] = index;
  }
}

/// out[t] = max of rows 2 t - 1, 2 t and 2 t + 1 of x [steps, width]; out is [ceil(steps / 2),
/// width].
template <class T>
void halve_by_maximum(const T* x, T* out, uint8_t* which, int64_t steps, int64_t width) {
  for (int64_t t = 0; 2 * t < steps; ++t) {
    const T* const middle = x + 2 * t * width;
    T* const o = out + t * width;
    uint8_t* const w = which + t * width;
    const bool before = t > 0, after = 2 * t + 1 < steps;
    if (before && after) {
      pool_row<true, true>(middle, o, w, width);
    } else if (before) {
      pool_row<true, false>(middle, o, w, width);
    } else if (after) {
      pool_row<false, true>(middle, o, w, width);
    } else {
      pool_row<false, false>(middle, o, w, width);
    }
  }
}

/// x_gradient = gradient where `which` is kWhich, else 0; with kNext, plus the next row of gradient
/// where its `which` is 0.
template <class V, uint8_t kWhich, bool kNext>
inline void unpool_row(const typename V::Scalar* gradient, const uint8_t* which,
                       typename V::Scalar* x_gradient, int64_t width) {
  using T = typename V::Scalar;
  const auto zero = V::zero();
  int64_t c = 0;
  for (; c + V::kWidth <= width; c += V::kWidth) {
    auto sum = V::if_byte(which + c, kWhich, V::load(gradient + c), zero);
    if constexpr (kNext) {
      const int64_t next = c + width;
      sum = V::add(sum, V::if_byte(which + next, 0, V::load(gradient + next), zero));
    }
    V::store(x_gradient + c, sum);
  }
  for (; c < width; ++c) {
    x_gradient[c] = which[c] == kWhich ? gradient[c] : T(0);
    if (kNext && which[c + width] == 0) x_gradient[c] += gradient[c + width];
  }
}

/// The backward of `halve_by_maximum`. Writes each row of x_gradient once: an even row is the
/// middle of a window; an odd row is the last of one window and the first of the next, if there is
/// one.
template <class V>
void halve_by_maximum_backward(const typename V::Scalar* gradient, const uint8_t* which,
                               typename V::Scalar* x_gradient, int64_t steps, int64_t width) {
  for (int64_t s = 0; s < steps; ++s) {
    const auto* const g = gradient + s / 2 * width;
    const uint8_t* const w = which + s / 2 * width;
    auto* const to = x_gradient + s * width;
    if (s % 2 == 0) {
      unpool_row<V, 1, false>(g, w, to, width);
    } else if (s + 1 < steps) {
      unpool_row<V, 2, true>(g, w, to, width);
    } else {
      unpool_row<V, 2, false>(g, w, to, width);
    }
  }
}

}  // namespace
}  // namespace flash
