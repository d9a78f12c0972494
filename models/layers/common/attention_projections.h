#pragma once
// The four projections of an attention layer.

#include <flash_attention/export.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include "layers/common/linear.h"

namespace flash::models {

/// query_, key_, value_ and out_projection, registered under these names in the layer that owns
/// them.
class FLASH_API AttentionProjections {
 public:
  /// Heads of width hidden_size / heads, rounded down.
  void register_in(torch::nn::Module& owner, int64_t hidden_size, int64_t heads);

  int64_t heads() const { return heads_; }
  int64_t head_dim() const { return head_dim_; }

  // x [B, T, hidden_size] -> [B, T, heads * head_dim]
  at::Tensor query(const at::Tensor& x) const { return apply(query_, x); }
  at::Tensor key(const at::Tensor& x) const { return apply(key_, x); }
  at::Tensor value(const at::Tensor& x) const { return apply(value_, x); }
  /// [B, T, heads * head_dim] -> [B, T, hidden_size]
  at::Tensor out(const at::Tensor& x) const { return apply(out_, x); }

  const torch::nn::LinearImpl& query_layer() const { return *query_; }
  const torch::nn::LinearImpl& key_layer() const { return *key_; }
  const torch::nn::LinearImpl& value_layer() const { return *value_; }
  const torch::nn::LinearImpl& out_layer() const { return *out_; }

  /// [B, T, heads * head_dim] -> [B, heads, T, head_dim], a view.
  at::Tensor split_heads(const at::Tensor& x) const {
    return x.unflatten(-1, {heads_, head_dim_}).transpose(1, 2);
  }

 private:
  static at::Tensor apply(const torch::nn::Linear& layer, const at::Tensor& x) {
    return linear(x, layer->weight, layer->bias);
  }

  int64_t heads_ = 0, head_dim_ = 0;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr}, out_{nullptr};
};

}  // namespace flash::models
