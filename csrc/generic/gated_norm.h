#pragma once
// The gate, residual connection and layer norm that end a gated residual network, in one pass over
// each row.

#include "csrc/denormals.h"
#include "csrc/generic/activations.h"
#include "csrc/generic/lanes.h"

namespace flash {
namespace {

constexpr double kGatedNormEpsilon = 1e-3;

/// out [rows, width] = LayerNorm(a * sigmoid(b) + skip), where [a | b] = gate + bias. With row
/// factors, out += factor * LayerNorm(...) instead. `scratch` holds one row.
template <class V>
void gated_norm(const GatedNormParams<typename V::Scalar>& p, typename V::Scalar* out,
                typename V::Scalar* scratch, int64_t rows) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const FlushDenormals flush;
  const int64_t width = p.width;
  const T inverse_width = T(1) / static_cast<T>(width);
  const T *const value_bias = p.bias, *const gate_bias = p.bias + width;
  const T *const scale = p.scale, *const shift = p.shift;
  for (int64_t row = 0; row < rows; ++row) {
    const T* const a = p.gate + row * 2 * width;
    const T* const b = a + width;
    const T* const skip = p.skip + row * width;
    Reg sum = V::zero();  // lanes past the end add 0
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg gate = sigmoid<V>(V::add(lanes.load(b + c), lanes.load(gate_bias + c)));
          const Reg value = V::add(lanes.load(a + c), lanes.load(value_bias + c));
          const Reg x = V::fma(value, gate, lanes.load(skip + c));
          lanes.store(scratch + c, x);
          sum = V::add(sum, x);
        });
    const T mean = sum_of_lanes<V>(sum) * inverse_width;
    const Reg means = V::broadcast(mean);
    Reg squares = V::zero();
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg centered = lanes.only(V::sub(lanes.load(scratch + c), means));
          squares = V::fma(centered, centered, squares);
        });
    const T variance = sum_of_lanes<V>(squares) * inverse_width;
    const T reciprocal = T(1) / square_root(variance + T(kGatedNormEpsilon));
    p.statistics[2 * row] = mean;
    p.statistics[2 * row + 1] = reciprocal;
    T* const o = out + row * width;
    const Reg reciprocals = V::broadcast(reciprocal);
    const bool adds = p.row_factors != nullptr;
    const Reg factor = V::broadcast(adds ? p.row_factors[row * p.factor_stride] : T(1));
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg normalized = V::mul(V::sub(lanes.load(scratch + c), means), reciprocals);
          const Reg y = V::fma(normalized, lanes.load(scale + c), lanes.load(shift + c));
          lanes.store(o + c, adds ? V::fma(factor, y, lanes.load(o + c)) : y);
        });
  }
}

/// The backward of `gated_norm`: fills the gradients of gate, skip and row factors, and adds to the
/// sums.
template <class V>
void gated_norm_backward(const GatedNormParams<typename V::Scalar>& p,
                         const GatedNormGradients<typename V::Scalar>& d, int64_t rows) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  const FlushDenormals flush;
  const int64_t width = p.width;
  const T inverse_width = T(1) / static_cast<T>(width);
  const T *const value_bias = p.bias, *const gate_bias = p.bias + width;
  const T *const scale = p.scale, *const shift = p.shift;
  T *const scale_sum = d.sums, *const shift_sum = scale_sum + width;
  T *const value_bias_sum = shift_sum + width, *const gate_bias_sum = value_bias_sum + width;
  const Reg one = V::broadcast(T(1));
  const auto add_to = [](T * memory, auto lanes, Reg x) __attribute__((always_inline)) {
    lanes.store(memory, V::add(lanes.load(memory), x));
  };
  for (int64_t row = 0; row < rows; ++row) {
    const T* const a = p.gate + row * 2 * width;
    const T* const b = a + width;
    const T* const skip = p.skip + row * width;
    const T* const out_gradient = d.out + row * width;
    T* const a_gradient = d.gate + row * 2 * width;
    T* const b_gradient = a_gradient + width;
    T* const skip_gradient = d.skip + row * width;
    const Reg mean = V::broadcast(p.statistics + 2 * row);
    const Reg reciprocal = V::broadcast(p.statistics + 2 * row + 1);
    const Reg factor =
        p.row_factors == nullptr ? one : V::broadcast(p.row_factors + row * p.factor_stride);
    Reg sum = V::zero(), sum_normalized = V::zero(), dot = V::zero();
    // Until the second pass, a_gradient and b_gradient hold the normalized row and the gate. In
    // lanes past the end, the gradient and the scale are 0.
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg gate = sigmoid<V>(V::add(lanes.load(b + c), lanes.load(gate_bias + c)));
          const Reg value = V::add(lanes.load(a + c), lanes.load(value_bias + c));
          const Reg x = V::fma(value, gate, lanes.load(skip + c));
          const Reg normalized = V::mul(V::sub(x, mean), reciprocal);
          const Reg incoming = lanes.load(out_gradient + c), weight = lanes.load(scale + c);
          const Reg g = V::mul(factor, incoming), to_normalized = V::mul(g, weight);
          lanes.store(a_gradient + c, normalized);
          lanes.store(b_gradient + c, gate);
          add_to(scale_sum + c, lanes, V::mul(g, normalized));
          add_to(shift_sum + c, lanes, g);
          sum = V::add(sum, to_normalized);
          sum_normalized = V::fma(to_normalized, normalized, sum_normalized);
          dot = V::fma(incoming, V::fma(normalized, weight, lanes.load(shift + c)), dot);
        });
    if (d.row_factors != nullptr) d.row_factors[row * d.factor_stride] = sum_of_lanes<V>(dot);
    const Reg mean_gradient = V::broadcast(sum_of_lanes<V>(sum) * inverse_width);
    const Reg mean_product = V::broadcast(sum_of_lanes<V>(sum_normalized) * inverse_width);
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg normalized = lanes.load(a_gradient + c), gate = lanes.load(b_gradient + c);
          const Reg direct =
              V::mul(V::mul(factor, lanes.load(out_gradient + c)), lanes.load(scale + c));
          const Reg through_mean = V::fma(normalized, mean_product, mean_gradient);
          const Reg g = V::mul(reciprocal, V::sub(direct, through_mean));
          const Reg to_a = V::mul(g, gate);
          const Reg value = V::add(lanes.load(a + c), lanes.load(value_bias + c));
          const Reg to_b = V::mul(V::mul(to_a, V::sub(one, gate)), value);
          lanes.store(skip_gradient + c, g);
          lanes.store(a_gradient + c, to_a);
          lanes.store(b_gradient + c, to_b);
          add_to(value_bias_sum + c, lanes, to_a);
          add_to(gate_bias_sum + c, lanes, to_b);
        });
  }
}

}  // namespace
}  // namespace flash
