#pragma once
// One layer of an LSTM as a differentiable function. The matrix products with the input are
// computed for many steps at a time; the elementwise part of a step is one pass.
//
// Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with a forget gate, in
// torch.nn.LSTM's layout (rows of the weights: input, forget, cell, output).

#include <ATen/core/Tensor.h>

namespace flash::models {

struct LstmWeights {
  at::Tensor input;   ///< [4 D, E]
  at::Tensor hidden;  ///< [4 D, D]
  at::Tensor bias;    ///< [4 D], the sum of torch's two
};

/// The outputs of all steps and the final state.
struct LstmOutputs {
  at::Tensor all;           ///< [T, B, D]
  at::Tensor hidden, cell;  ///< [B, D], after the last step
};

/// x [T, B, E], hidden and cell [B, D], float32 or float64. Differentiable once: a second
/// derivative throws c10::NotImplementedError.
LstmOutputs lstm_layer(const at::Tensor& x, const at::Tensor& hidden, const at::Tensor& cell,
                       const LstmWeights& weights);

}  // namespace flash::models
