#pragma once
// One layer of an LSTM as a differentiable function: the input's products for many steps at a time,
// and a step's elementwise part in one pass.
//
// Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with a forget gate, as
// torch.nn.LSTM computes it (rows of the weights: input, forget, cell, output).

#include <ATen/core/Tensor.h>

namespace flash::models {

struct LstmWeights {
  at::Tensor input;   ///< [4 D, E]
  at::Tensor hidden;  ///< [4 D, D]
  at::Tensor bias;    ///< [4 D], both of torch's added up
};

/// What a sequence leaves behind.
struct LstmOutputs {
  at::Tensor all;           ///< [T, B, D]
  at::Tensor hidden, cell;  ///< [B, D], after the last step
};

/// x [T, B, E], hidden and cell [B, D], float32 or float64. Differentiable once: a second
/// derivative throws c10::NotImplementedError.
LstmOutputs lstm_layer(const at::Tensor& x, const at::Tensor& hidden, const at::Tensor& cell,
                       const LstmWeights& weights);

}  // namespace flash::models
