#include "layers/gated_loops.h"

#include <bit>
#include <cmath>

#include "layers/function_clones.h"
#include "layers/gated_math.h"

namespace flash::models {
namespace {

constexpr double kEpsilon = 1e-3;  // of the layer norms

template <GatedActivation kActivation, class T>
[[gnu::always_inline]] inline void activate(T* block, const T* shift, int64_t period, int64_t first,
                                            int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* x = block + row * width;
    const T* s = shift + (first + row) % period * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) x[i] = activation<kActivation>(x[i] + s[i]);
  }
}

template <GatedActivation kActivation, class T>
[[gnu::always_inline]] inline void activate_backward(T* gradient, const T* activated, T* sums,
                                                     int64_t period, int64_t first, int64_t width,
                                                     int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* g = gradient + row * width;
    const T* y = activated + row * width;
    T* sum = sums + (first + row) % period * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      g[i] *= derivative<kActivation>(y[i]);
      sum[i] += g[i];
    }
  }
}

/// Calls `call` with the activation as a compile-time constant.
template <class Call>
[[gnu::always_inline]] inline void with_activation(GatedActivation activation, Call&& call) {
  using enum GatedActivation;
  switch (activation) {
    case kRelu:
      return call.template operator()<kRelu>();
    case kSoftplus:
      return call.template operator()<kSoftplus>();
    case kTanh:
      return call.template operator()<kTanh>();
    case kSelu:
      return call.template operator()<kSelu>();
    case kLeakyRelu:
      return call.template operator()<kLeakyRelu>();
    case kSigmoid:
      return call.template operator()<kSigmoid>();
    case kGelu:
      return call.template operator()<kGelu>();
    case kElu:
      return call.template operator()<kElu>();
  }
}

template <class T>
[[gnu::always_inline]] inline void drop(T* block, const T* bias, const T* factors, int64_t width,
                                        int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* x = block + row * width;
    if (factors == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) x[i] = (x[i] + bias[i]) + T(0);
      continue;
    }
    const T* f = factors + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const T kept = (x[i] + bias[i]) * f[i] + T(0);  // -0.0 + 0.0 is 0.0
      x[i] = f[i] > T(0) ? kept : T(-0.0);
    }
  }
}

[[gnu::always_inline]] inline bool is_negative_zero(float x) {
  return std::bit_cast<uint32_t>(x) == 0x80000000u;
}
[[gnu::always_inline]] inline bool is_negative_zero(double x) {
  return std::bit_cast<uint64_t>(x) == 0x8000000000000000u;
}

template <class T>
[[gnu::always_inline]] inline void drop_backward(T* gradient, const T* dropped, T factor, T* sums,
                                                 int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* g = gradient + row * width;
    const T* y = dropped + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      g[i] = is_negative_zero(y[i]) ? T(0) : g[i] * factor;
      sums[i] += g[i];
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void outer(T* out, const T* x, int64_t x_stride, const T* factor,
                                         const T* shift, int64_t width, int64_t begin,
                                         int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* o = out + row * width;
    const T value = x[row * x_stride];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) o[i] = value * factor[i] + shift[i];
  }
}

template <class T>
[[gnu::always_inline]] inline void outer_backward(const T* gradient, const T* x, int64_t x_stride,
                                                  const T* factor, T* x_gradient,
                                                  int64_t x_gradient_stride, T* sums, int64_t width,
                                                  int64_t begin, int64_t end) {
  T* factor_sum = sums;
  T* shift_sum = sums + width;
  for (int64_t row = begin; row < end; ++row) {
    const T* g = gradient + row * width;
    const T value = x[row * x_stride];
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) {
      factor_sum[i] += g[i] * value;
      shift_sum[i] += g[i];
      dot += g[i] * factor[i];
    }
    x_gradient[row * x_gradient_stride] += dot;
  }
}

template <class T>
[[gnu::always_inline]] inline void gated_norm(const GatedNormPointers<T>& p, T* out, T* scratch,
                                              int64_t begin, int64_t end) {
  const int64_t width = p.width;
  const T inverse_width = T(1) / static_cast<T>(width);
  const T *bias = p.bias, *scale = p.scale, *shift = p.shift;
  for (int64_t row = begin; row < end; ++row) {
    const T* a = p.gate + row * 2 * width;
    const T* b = a + width;
    const T* skip = p.skip + row * width;
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      scratch[i] = (a[i] + bias[i]) * sigmoid(b[i] + bias[width + i]) + skip[i];
      sum += scratch[i];
    }
    const T mean = sum * inverse_width;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) {
      const T centered = scratch[i] - mean;
      squares += centered * centered;
    }
    const T reciprocal = T(1) / std::sqrt(squares * inverse_width + T(kEpsilon));
    p.statistics[2 * row] = mean;
    p.statistics[2 * row + 1] = reciprocal;
    T* o = out + row * width;
    if (p.row_factors == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        o[i] = (scratch[i] - mean) * reciprocal * scale[i] + shift[i];
      }
      continue;
    }
    const T factor = p.row_factors[row * p.factor_stride];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      o[i] += factor * ((scratch[i] - mean) * reciprocal * scale[i] + shift[i]);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void gated_norm_backward(const GatedNormPointers<T>& p,
                                                       const GatedNormGradients<T>& d,
                                                       int64_t begin, int64_t end) {
  const int64_t width = p.width;
  const T inverse_width = T(1) / static_cast<T>(width);
  const T *bias = p.bias, *scale = p.scale, *shift = p.shift;
  T *scale_sum = d.sums, *shift_sum = d.sums + width, *bias_sum = d.sums + 2 * width;
  for (int64_t row = begin; row < end; ++row) {
    const T* a = p.gate + row * 2 * width;
    const T* b = a + width;
    const T* skip = p.skip + row * width;
    const T* y_gradient = d.gradient + row * width;
    T* a_gradient = d.gate + row * 2 * width;
    T* b_gradient = a_gradient + width;
    T* skip_gradient = d.skip + row * width;
    const T mean = p.statistics[2 * row], reciprocal = p.statistics[2 * row + 1];
    const T factor = p.row_factors == nullptr ? T(1) : p.row_factors[row * p.factor_stride];
    T sum = 0, sum_normalized = 0, dot = 0;
    // The gradients' memory holds the normalised row and the gate until the second pass.
#pragma omp simd reduction(+ : sum, sum_normalized, dot)
    for (int64_t i = 0; i < width; ++i) {
      const T gate = sigmoid(b[i] + bias[width + i]);
      const T normalized = ((a[i] + bias[i]) * gate + skip[i] - mean) * reciprocal;
      const T g = factor * y_gradient[i];
      a_gradient[i] = normalized;
      b_gradient[i] = gate;
      scale_sum[i] += g * normalized;
      shift_sum[i] += g;
      sum += g * scale[i];
      sum_normalized += g * scale[i] * normalized;
      dot += y_gradient[i] * (normalized * scale[i] + shift[i]);
    }
    if (d.factors != nullptr) d.factors[row * d.factor_stride] = dot;
    sum *= inverse_width;
    sum_normalized *= inverse_width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const T normalized = a_gradient[i], gate = b_gradient[i];
      const T g =
          reciprocal * (factor * y_gradient[i] * scale[i] - sum - normalized * sum_normalized);
      const T to_a = g * gate;
      const T to_b = to_a * (T(1) - gate) * (a[i] + bias[i]);
      skip_gradient[i] = g;
      a_gradient[i] = to_a;
      b_gradient[i] = to_b;
      bias_sum[i] += to_a;
      bias_sum[width + i] += to_b;
    }
  }
}

/// One step: the gates [begin, end) of 4 width numbers become their activations.
template <class T>
[[gnu::always_inline]] inline void lstm(T* gates, const T* bias, const T* last_cell, T* cell,
                                        T* hidden, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* input = gates + row * 4 * width;
    T *forget = input + width, *candidate = forget + width, *output = candidate + width;
    const T* before = last_cell + row * width;
    T *after = cell + row * width, *out = hidden + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const T in = sigmoid(input[i] + bias[i]);
      const T kept = sigmoid(forget[i] + bias[width + i]);
      const T added = hyperbolic_tangent(candidate[i] + bias[2 * width + i]);
      const T shown = sigmoid(output[i] + bias[3 * width + i]);
      const T state = kept * before[i] + in * added;
      input[i] = in;
      forget[i] = kept;
      candidate[i] = added;
      output[i] = shown;
      after[i] = state;
      out[i] = shown * hyperbolic_tangent(state);
    }
  }
}

/// One step backwards: to_cell goes from the gradient of `cell` to that of `last_cell`.
template <class T>
[[gnu::always_inline]] inline void lstm_backward(const T* gates, const T* cell, const T* last_cell,
                                                 const T* to_out, const T* to_hidden, T* to_cell,
                                                 T* to_gates, T* bias_sums, int64_t width,
                                                 int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = gates + row * 4 * width;
    T* to_gate = to_gates + row * 4 * width;
    const T *after = cell + row * width, *before = last_cell + row * width;
    const T *from_out = to_out + row * width, *from_next = to_hidden + row * width;
    T* state_gradient = to_cell + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const T in = gate[i], kept = gate[width + i];
      const T added = gate[2 * width + i], shown = gate[3 * width + i];
      const T squashed = hyperbolic_tangent(after[i]);
      const T g = from_out[i] + from_next[i];
      const T to_state = state_gradient[i] + g * shown * (T(1) - squashed * squashed);
      const T to_in = to_state * added * in * (T(1) - in);
      const T to_kept = to_state * before[i] * kept * (T(1) - kept);
      const T to_added = to_state * in * (T(1) - added * added);
      const T to_shown = g * squashed * shown * (T(1) - shown);
      state_gradient[i] = to_state * kept;
      to_gate[i] = to_in;
      to_gate[width + i] = to_kept;
      to_gate[2 * width + i] = to_added;
      to_gate[3 * width + i] = to_shown;
      bias_sums[i] += to_in;
      bias_sums[width + i] += to_kept;
      bias_sums[2 * width + i] += to_added;
      bias_sums[3 * width + i] += to_shown;
    }
  }
}

}  // namespace

// The attribute for several instruction sets does not go with templates, so each dtype is named.
#define FLASH_GATED_LOOPS(T)                                                                      \
  FLASH_FUNCTION_CLONES void activate_loop(GatedActivation kind, T* block, const T* shift,        \
                                           int64_t period, int64_t first, int64_t width,          \
                                           int64_t begin, int64_t end) {                          \
    with_activation(kind, [&]<GatedActivation k>() FLASH_INLINE_LAMBDA {                          \
      activate<k>(block, shift, period, first, width, begin, end);                                \
    });                                                                                           \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void activate_backward_loop(                                              \
      GatedActivation kind, T* gradient, const T* activated, T* sums, int64_t period,             \
      int64_t first, int64_t width, int64_t begin, int64_t end) {                                 \
    with_activation(kind, [&]<GatedActivation k>() FLASH_INLINE_LAMBDA {                          \
      activate_backward<k>(gradient, activated, sums, period, first, width, begin, end);          \
    });                                                                                           \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void drop_loop(T* block, const T* bias, const T* factors, int64_t width,  \
                                       int64_t begin, int64_t end) {                              \
    drop(block, bias, factors, width, begin, end);                                                \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void drop_backward_loop(T* gradient, const T* dropped, T factor, T* sums, \
                                                int64_t width, int64_t begin, int64_t end) {      \
    drop_backward(gradient, dropped, factor, sums, width, begin, end);                            \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void outer_loop(T* out, const T* x, int64_t x_stride, const T* factor,    \
                                        const T* shift, int64_t width, int64_t begin,             \
                                        int64_t end) {                                            \
    outer(out, x, x_stride, factor, shift, width, begin, end);                                    \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void outer_backward_loop(                                                 \
      const T* gradient, const T* x, int64_t x_stride, const T* factor, T* x_gradient,            \
      int64_t x_gradient_stride, T* sums, int64_t width, int64_t begin, int64_t end) {            \
    outer_backward(gradient, x, x_stride, factor, x_gradient, x_gradient_stride, sums, width,     \
                   begin, end);                                                                   \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void gated_norm_loop(const GatedNormPointers<T>& block, T* out,           \
                                             T* scratch, int64_t begin, int64_t end) {            \
    gated_norm(block, out, scratch, begin, end);                                                  \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void gated_norm_backward_loop(const GatedNormPointers<T>& block,          \
                                                      const GatedNormGradients<T>& gradients,     \
                                                      int64_t begin, int64_t end) {               \
    gated_norm_backward(block, gradients, begin, end);                                            \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void lstm_loop(T* gates, const T* bias, const T* last_cell, T* cell,      \
                                       T* hidden, int64_t width, int64_t begin, int64_t end) {    \
    lstm(gates, bias, last_cell, cell, hidden, width, begin, end);                                \
  }                                                                                               \
  FLASH_FUNCTION_CLONES void lstm_backward_loop(                                                  \
      const T* gates, const T* cell, const T* last_cell, const T* to_out, const T* to_hidden,     \
      T* to_cell, T* to_gates, T* bias_sums, int64_t width, int64_t begin, int64_t end) {         \
    lstm_backward(gates, cell, last_cell, to_out, to_hidden, to_cell, to_gates, bias_sums, width, \
                  begin, end);                                                                    \
  }
#define FLASH_INLINE_LAMBDA __attribute__((always_inline))
FLASH_GATED_LOOPS(float)
FLASH_GATED_LOOPS(double)
#undef FLASH_GATED_LOOPS
#undef FLASH_INLINE_LAMBDA
#undef FLASH_FUNCTION_CLONES

}  // namespace flash::models
