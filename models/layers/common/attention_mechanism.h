#pragma once
// What an attention layer does with its projections.

#include <ATen/core/Tensor.h>
#include <flash_attention/models/model_config.h>

#include "layers/common/attention_projections.h"

namespace flash::models {

class AttentionMechanism {
 public:
  virtual ~AttentionMechanism() = default;
  /// x [B, L, D] asks, memory [B, S, D] answers -> [B, L, D], through all four projections.
  virtual at::Tensor attend(const AttentionProjections& projections, const at::Tensor& x,
                            const at::Tensor& memory, bool training) const = 0;
};

/// softmax(q k^T / sqrt(d)) v, every query over every key, with dropout of the weights in training.
class FullAttention : public AttentionMechanism {
 public:
  FullAttention(double dropout, const ModelConfig& config) : dropout_(dropout), config_(config) {}
  at::Tensor attend(const AttentionProjections& projections, const at::Tensor& x,
                    const at::Tensor& memory, bool training) const override;

 private:
  double dropout_;
  ModelConfig config_;
};

}  // namespace flash::models
