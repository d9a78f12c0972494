#pragma once
// The part of an attention layer between its inputs and its output: softmax attention, or what a
// model has instead.

#include <flash_attention/export.h>
#include <flash_attention/models/model_config.h>
#include <torch/nn/module.h>

#include "layers/common/attention_projections.h"

namespace flash::models {

/// A mechanism applies the four projections itself, because some find a cheaper order than
/// projecting, mixing and projecting back.
///
/// It is a module because some have weights. Several layers may share one mechanism. At most one
/// of them registers it, so its own is_training() says nothing: the layer passes its mode.
class FLASH_API AttentionMechanism : public torch::nn::Module {
 public:
  /// Queries from x [B, L, D], keys and values from memory [B, S, D] -> [B, L, D].
  virtual at::Tensor forward(const AttentionProjections& projections, const at::Tensor& x,
                             const at::Tensor& memory, bool training) const = 0;
};

/// softmax(q k^T / sqrt(d)) v. `dropout` applies to the attention weights, in training only.
class FullAttention : public AttentionMechanism {
 public:
  FullAttention(double dropout, const ModelConfig& config) : dropout_(dropout), config_(config) {}
  at::Tensor forward(const AttentionProjections& projections, const at::Tensor& x,
                     const at::Tensor& memory, bool training) const override;

 private:
  double dropout_;
  ModelConfig config_;
};

}  // namespace flash::models
