#include "layers/patchtst/residual_attention.h"

#include <flash_attention/ops.h>
#include <torch/torch.h>

#include <cmath>

#include "layers/patchtst/lane_attention.h"

namespace flash::models {

ScoreScaleImpl::ScoreScaleImpl(int64_t head_dim) : head_dim_(head_dim) { reset(); }

void ScoreScaleImpl::reset() {
  // Rounded to float32 and cast later, as in neuralforecast, so that a float64 model uses the same
  // value.
  const auto scale = static_cast<float>(std::pow(static_cast<double>(head_dim_), -0.5));
  scale_ = register_parameter("scale", torch::tensor(scale), /*requires_grad=*/false);
}

ResidualAttentionImpl::ResidualAttentionImpl(ResidualAttentionOptions options)
    : options_(options), head_dim_(options.hidden_size / options.heads) {
  reset();
}

void ResidualAttentionImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  const int64_t inner = options_.heads * head_dim_;
  query_ = register_module("W_Q", torch::nn::Linear(hidden, inner));
  key_ = register_module("W_K", torch::nn::Linear(hidden, inner));
  value_ = register_module("W_V", torch::nn::Linear(hidden, inner));
  scale_ = register_module("sdp_attn", std::make_shared<ScoreScaleImpl>(head_dim_));
  output_ = register_module("to_out", torch::nn::Sequential(torch::nn::Linear(inner, hidden)));
}

ResidualAttentionImpl::Projections ResidualAttentionImpl::projections() const {
  return {
      {{query_->weight, query_->bias}, {key_->weight, key_->bias}, {value_->weight, value_->bias}}};
}

LinearWeights ResidualAttentionImpl::merge() const {
  const auto& output = output_->at<torch::nn::LinearImpl>(0);
  return {output.weight, output.bias};
}

torch::Tensor ResidualAttentionImpl::scale() const {
  return options_.add_previous_scores ? scale_->value() : torch::Tensor();
}

torch::Tensor ResidualAttentionImpl::forward(const torch::Tensor& x, ScoreHistory& history) {
  // Scaling the query's weights is cheaper than scaling the queries.
  Projections layers = projections();
  if (options_.add_previous_scores) {
    layers[0] = {layers[0].weight * scale_->value(), layers[0].bias * scale_->value()};
  }
  const torch::Tensor attended = options_.config.use_flash_attention ? flash(x, layers, history)
                                                                     : standard(x, layers, history);
  const auto [weight, bias] = merge();
  return merge_heads(attended, weight, bias);
}

torch::Tensor ResidualAttentionImpl::flash(const torch::Tensor& x, const Projections& projections,
                                           ScoreHistory& history) const {
  ScoreHistory alone;
  ScoreHistory& used = options_.add_previous_scores ? history : alone;
  const torch::Tensor value = project_heads(x, projections, options_.heads, used);
  const double scale =
      options_.add_previous_scores ? 1.0 : 1.0 / std::sqrt(static_cast<double>(head_dim_));
  if (dropout_now() == 0.0 && fits_lanes(used.queries, used.keys, value)) {
    return lane_attention(used.queries, used.keys, value, scale);
  }
  return attention(used.queries, used.keys, value,
                   AttentionOptions()
                       .dropout(dropout_now())
                       .block_size(options_.config.flash_block_size)
                       .scale(scale));
}

torch::Tensor ResidualAttentionImpl::standard(const torch::Tensor& x,
                                              const Projections& projections,
                                              ScoreHistory& history) const {
  ScoreHistory alone;
  const torch::Tensor value = project_heads(x, projections, options_.heads, alone);
  const torch::Tensor &query = alone.queries, &key = alone.keys;
  if (!options_.add_previous_scores) {
    return standard_attention(query, key, value, AttentionOptions().dropout(dropout_now()));
  }
  torch::Tensor scores = query.matmul(key.transpose(-2, -1));
  if (history.scores.defined()) scores = scores + history.scores;
  history.scores = scores;
  torch::Tensor weights = scores.softmax(-1);
  if (const double dropout = dropout_now(); dropout > 0.0) {
    // The mask that `attention` would draw, so that both implementations train identically from the
    // same seed.
    const torch::Tensor kept =
        dropout_mask(weights.size(0), weights.size(1), weights.size(2), weights.size(3), dropout);
    const double factor = dropout < 1.0 ? 1.0 / (1.0 - dropout) : 0.0;
    weights = weights * kept.to(weights.scalar_type()).mul_(factor);
  }
  return weights.matmul(value);
}

}  // namespace flash::models
