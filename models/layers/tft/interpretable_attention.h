#pragma once
// Multi-head attention with shared values and averaged heads (arXiv:1912.09363, section 4.4).

#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <string>

namespace flash::models {

/// Sizes and switches of `InterpretableAttention`.
struct InterpretableAttentionOptions {
  int64_t hidden_size;
  int64_t heads;
  double attention_dropout;
  double output_dropout;
  ModelConfig config;
};

/// The same results as neuralforecast's, but only for the queries whose results are used, and
/// without its constant buffer `_mask` [1, T, T].
class InterpretableAttentionImpl : public torch::nn::Cloneable<InterpretableAttentionImpl> {
 public:
  explicit InterpretableAttentionImpl(InterpretableAttentionOptions options);
  void reset() override;

  /// x [T, B, hidden_size] and its last steps [queries, B, hidden_size] -> their attention output,
  /// of the same shape. Causal.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& last);

 private:
  InterpretableAttentionOptions options_;
  int64_t head_dim_;
  torch::nn::Linear projections_{nullptr}, output_{nullptr};
};
TORCH_MODULE(InterpretableAttention);

}  // namespace flash::models
