#pragma once
// The elementwise part of one LSTM step. Gates are in torch's order: input, forget, candidate,
// output.

#include "csrc/denormals.h"
#include "csrc/generic/activations.h"
#include "csrc/generic/lanes.h"

namespace flash {
namespace {

/// Replaces `gates` [rows, 4 width], the sum of the matrix products, by the activations of
/// gates + bias, and writes `cell` and `hidden`. bias [4 width]; last_cell, cell, hidden [rows,
/// width].
template <class V>
void lstm(typename V::Scalar* gates, const typename V::Scalar* bias,
          const typename V::Scalar* last_cell, typename V::Scalar* cell, typename V::Scalar* hidden,
          int64_t rows, int64_t width) {
  using Reg = typename V::Reg;
  const FlushDenormals flush;
  for (int64_t row = 0; row < rows; ++row) {
    auto* const gate = gates + row * 4 * width;
    const auto* const before = last_cell + row * width;
    auto *const after = cell + row * width, *const out = hidden + row * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto argument = [&](int64_t i) __attribute__((always_inline)) {
            return V::add(lanes.load(gate + i * width + c), lanes.load(bias + i * width + c));
          };
          Reg sigmoids[3] = {argument(0), argument(1), argument(3)};
          sigmoid<V>(sigmoids);
          const Reg input = sigmoids[0], forget = sigmoids[1], output = sigmoids[2];
          const Reg candidate = tanh<V>(argument(2));
          const Reg state = V::fma(forget, lanes.load(before + c), V::mul(input, candidate));
          lanes.store(gate + c, input);
          lanes.store(gate + width + c, forget);
          lanes.store(gate + 2 * width + c, candidate);
          lanes.store(gate + 3 * width + c, output);
          lanes.store(after + c, state);
          lanes.store(out + c, V::mul(output, tanh<V>(state)));
        });
  }
}

/// The backward of `lstm`. `gates` are the activations; to_out and to_hidden [rows, width] are the
/// gradients of `hidden` as the output and as the input of the next step. Writes to_gates
/// [rows, 4 width], adds its sum over rows to bias_sums [4 width], and replaces to_cell, the
/// gradient of `cell`, by that of `last_cell`.
template <class V>
void lstm_backward(const typename V::Scalar* gates, const typename V::Scalar* cell,
                   const typename V::Scalar* last_cell, const typename V::Scalar* to_out,
                   const typename V::Scalar* to_hidden, typename V::Scalar* to_cell,
                   typename V::Scalar* to_gates, typename V::Scalar* bias_sums, int64_t rows,
                   int64_t width) {
  using Reg = typename V::Reg;
  const FlushDenormals flush;
  const Reg one = V::broadcast(typename V::Scalar(1));
  for (int64_t row = 0; row < rows; ++row) {
    const auto* const activated = gates + row * 4 * width;
    auto* const gate_gradients = to_gates + row * 4 * width;
    const auto *const after = cell + row * width, *const before = last_cell + row * width;
    const auto *const from_out = to_out + row * width, *const from_next = to_hidden + row * width;
    auto* const state_gradient = to_cell + row * width;
    for_lanes<V>(
        width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const auto gate = [&](int64_t i) __attribute__((always_inline)) {
            return lanes.load(activated + i * width + c);
          };
          const auto set_gradient = [&](int64_t i, Reg gradient) __attribute__((always_inline)) {
            auto* const sum = bias_sums + i * width + c;
            lanes.store(gate_gradients + i * width + c, gradient);
            lanes.store(sum, V::add(lanes.load(sum), gradient));
          };
          // The derivatives of sigmoid and tanh from their value x.
          const auto slope = [&](Reg x) { return V::mul(x, V::sub(one, x)); };
          const auto tanh_slope = [&](Reg x) { return V::sub(one, V::mul(x, x)); };
          const Reg input = gate(0), forget = gate(1), candidate = gate(2), output = gate(3);
          const Reg tanh_cell = tanh<V>(lanes.load(after + c));
          const Reg g = V::add(lanes.load(from_out + c), lanes.load(from_next + c));
          const Reg to_state =
              V::fma(V::mul(g, output), tanh_slope(tanh_cell), lanes.load(state_gradient + c));
          set_gradient(0, V::mul(V::mul(to_state, candidate), slope(input)));
          set_gradient(1, V::mul(V::mul(to_state, lanes.load(before + c)), slope(forget)));
          set_gradient(2, V::mul(V::mul(to_state, input), tanh_slope(candidate)));
          set_gradient(3, V::mul(V::mul(g, tanh_cell), slope(output)));
          lanes.store(state_gradient + c, V::mul(to_state, forget));
        });
  }
}

}  // namespace
}  // namespace flash
