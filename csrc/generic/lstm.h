#pragma once
// The elementwise part of a step of an LSTM: gates in torch's order, input, forget, candidate,
// output.

#include "csrc/denormals.h"
#include "csrc/generic/activations.h"
#include "csrc/generic/lanes.h"

namespace flash {
namespace {

/// gates [rows, 4 width], the products, become the gates' activations; bias [4 width]; last_cell,
/// cell and hidden [rows, width], of which the latter two are written.
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
          Reg opened[3] = {argument(0), argument(1), argument(3)};
          sigmoid<V>(opened);
          const Reg in = opened[0], kept = opened[1], shown = opened[2];
          const Reg added = tanh<V>(argument(2));
          const Reg state = V::fma(kept, lanes.load(before + c), V::mul(in, added));
          lanes.store(gate + c, in);
          lanes.store(gate + width + c, kept);
          lanes.store(gate + 2 * width + c, added);
          lanes.store(gate + 3 * width + c, shown);
          lanes.store(after + c, state);
          lanes.store(out + c, V::mul(shown, tanh<V>(state)));
        });
  }
}

/// From the gates' activations, the cell, and the gradients of `hidden` as an output and as the
/// next step's input: to_gates [rows, 4 width], bias_sums [4 width] += their sum over rows, and
/// to_cell, the gradient of `cell`, becomes that of `last_cell`.
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
          const auto give = [&](int64_t i, Reg gradient) __attribute__((always_inline)) {
            auto* const sum = bias_sums + i * width + c;
            lanes.store(gate_gradients + i * width + c, gradient);
            lanes.store(sum, V::add(lanes.load(sum), gradient));
          };
          // The slope of a sigmoid whose value is x, and that of a tangent.
          const auto slope = [&](Reg x) { return V::mul(x, V::sub(one, x)); };
          const auto tangent_slope = [&](Reg x) { return V::sub(one, V::mul(x, x)); };
          const Reg in = gate(0), kept = gate(1), added = gate(2), shown = gate(3);
          const Reg squashed = tanh<V>(lanes.load(after + c));
          const Reg g = V::add(lanes.load(from_out + c), lanes.load(from_next + c));
          const Reg to_state =
              V::fma(V::mul(g, shown), tangent_slope(squashed), lanes.load(state_gradient + c));
          give(0, V::mul(V::mul(to_state, added), slope(in)));
          give(1, V::mul(V::mul(to_state, lanes.load(before + c)), slope(kept)));
          give(2, V::mul(V::mul(to_state, in), tangent_slope(added)));
          give(3, V::mul(V::mul(g, squashed), slope(shown)));
          lanes.store(state_gradient + c, V::mul(to_state, kept));
        });
  }
}

}  // namespace
}  // namespace flash
