#pragma once
// What surrounds the inner mechanism of an attention layer, whatever that is: the four projections.

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

namespace flash::models {

/// query_, key_, value_ and out_projection, owned by the layer around them under these names.
class AttentionProjections {
 public:
  /// Heads of width hidden_size / heads, rounded down.
  void register_in(torch::nn::Module& owner, int64_t hidden_size, int64_t heads);

  int64_t heads() const { return heads_; }
  int64_t head_dim() const { return head_dim_; }

  // x [B, T, hidden_size] -> [B, T, heads * head_dim]
  torch::Tensor query(const torch::Tensor& x) { return query_(x); }
  torch::Tensor key(const torch::Tensor& x) { return key_(x); }
  torch::Tensor value(const torch::Tensor& x) { return value_(x); }
  /// [B, T, heads * head_dim] -> [B, T, hidden_size]
  torch::Tensor out(const torch::Tensor& x) { return out_(x); }

  // The maps themselves, for mechanisms that put two of them together.
  const torch::nn::LinearImpl& query_map() const { return *query_; }
  const torch::nn::LinearImpl& key_map() const { return *key_; }
  const torch::nn::LinearImpl& value_map() const { return *value_; }
  const torch::nn::LinearImpl& out_map() const { return *out_; }

  /// [B, T, heads * head_dim] -> [B, heads, T, head_dim], a view.
  torch::Tensor split_heads(const torch::Tensor& x) const {
    return x.unflatten(-1, {heads_, head_dim_}).transpose(1, 2);
  }

 private:
  int64_t heads_ = 0, head_dim_ = 0;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr}, out_{nullptr};
};

}  // namespace flash::models
