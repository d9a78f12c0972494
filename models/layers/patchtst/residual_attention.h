#pragma once
// Self-attention that can add the scores of the previous layers, with or without storing scores.

#include <flash_attention/models/model_config.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <array>

#include "layers/patchtst/projected_heads.h"

namespace flash::models {

/// Sizes and switches of `ResidualAttentionImpl`.
struct ResidualAttentionOptions {
  int64_t hidden_size;
  int64_t heads;
  double attention_dropout;
  bool add_previous_scores;
  ModelConfig config;
};

/// The scale of the scores, under neuralforecast's name `sdp_attn.scale`: 0-d, never trained.
class ScoreScaleImpl : public torch::nn::Cloneable<ScoreScaleImpl> {
 public:
  explicit ScoreScaleImpl(int64_t head_dim);
  void reset() override;
  const torch::Tensor& value() const { return scale_; }

 private:
  int64_t head_dim_;
  torch::Tensor scale_;
};

/// Multi-head self-attention of PatchTST: S_l = scale * q_l k_l^T + S_{l-1}, softmax(S_l) v_l.
///
/// The sum over layers is one dot product: S_l = Q K^T, where Q concatenates the scaled queries of
/// all layers up to l, and K their keys. So flash attention computes the residual form exactly, and
/// layers pass on O(T) memory instead of O(T^2).
class ResidualAttentionImpl : public torch::nn::Cloneable<ResidualAttentionImpl> {
 public:
  explicit ResidualAttentionImpl(ResidualAttentionOptions options);

  void reset() override;

  /// x [B, T, hidden_size] -> the same shape, without neuralforecast's dropout at the end. Each
  /// layer reads `history` and updates it for the next.
  torch::Tensor forward(const torch::Tensor& x, ScoreHistory& history);

  using Projections = std::array<LinearWeights, 3>;  ///< of query, key and value
  Projections projections() const;
  /// Of the merged heads.
  LinearWeights merge() const;
  /// The scale of the scores, 0-d; undefined where they are not added up.
  torch::Tensor scale() const;

 private:
  torch::Tensor flash(const torch::Tensor& x, const Projections& projections,
                      ScoreHistory& history) const;
  torch::Tensor standard(const torch::Tensor& x, const Projections& projections,
                         ScoreHistory& history) const;
  double dropout_now() const { return is_training() ? options_.attention_dropout : 0.0; }

  ResidualAttentionOptions options_;
  int64_t head_dim_;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr};
  std::shared_ptr<ScoreScaleImpl> scale_;
  torch::nn::Sequential output_{nullptr};
};

}  // namespace flash::models
