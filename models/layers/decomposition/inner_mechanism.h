#pragma once
// What stands where other transformers have softmax attention.

#include <torch/nn/module.h>

#include "layers/common/attention_projections.h"

namespace flash::models {

/// The `inner_correlation` of an attention layer. One object may serve several layers. It applies
/// the projections itself, as it may find a cheaper order than one after another.
class InnerMechanism : public torch::nn::Module {
 public:
  /// x [B, T, D] asks, memory [B, S, D] answers -> [B, T, D]
  virtual at::Tensor forward(AttentionProjections& projections, const at::Tensor& x,
                             const at::Tensor& memory) = 0;
};

}  // namespace flash::models
