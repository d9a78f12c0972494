#pragma once
// What an attention layer does between its projections.

#include <ATen/core/Tensor.h>
#include <flash_attention/models/model_config.h>

namespace flash::models {

class AttentionMechanism {
 public:
  virtual ~AttentionMechanism() = default;
  /// query [B, H, L, d], key and value [B, H, S, d] -> [B, L, H d]
  virtual at::Tensor attend(const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, bool training) const = 0;
};

/// softmax(q k^T / sqrt(d)) v, every query over every key, with dropout of the weights in training.
class FullAttention : public AttentionMechanism {
 public:
  FullAttention(double dropout, const ModelConfig& config) : dropout_(dropout), config_(config) {}
  at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    bool training) const override;

 private:
  double dropout_;
  ModelConfig config_;
};

}  // namespace flash::models
