#include "layers/common/data_embedding.h"

#include <flash_attention/dropout.h>
#include <torch/torch.h>

#include <cmath>

#include "layers/common/skinny_linear.h"

namespace flash::models {

void TokenEmbeddingImpl::reset() {
  // A convolution, only to draw random numbers in neuralforecast's order: its own weights first,
  // then these.
  convolution_ = register_module(
      "tokenConv", torch::nn::Conv1d(torch::nn::Conv1dOptions(1, hidden_size_, 3).bias(false)));
  torch::nn::init::kaiming_normal_(convolution_->weight, /*a=*/0.0, torch::kFanIn,
                                   torch::kLeakyReLU);
}

void PositionalEmbeddingImpl::reset() {
  TORCH_CHECK_VALUE(hidden_size_ % 2 == 0, "expected an even hidden_size, got ", hidden_size_,
                    "; positions are embedded as pairs of a sine and a cosine");
  // Computed in float32 and cast later, as in neuralforecast, so that a float64 model uses the same
  // values.
  const torch::Tensor position = torch::arange(kMaxLength, torch::kFloat).unsqueeze(1);
  const double slope = -(std::log(10000.0) / static_cast<double>(hidden_size_));
  const torch::Tensor frequency = (torch::arange(0, hidden_size_, 2, torch::kFloat) * slope).exp();
  const torch::Tensor angle = position * frequency;
  table_ =
      register_buffer("pe", torch::stack({angle.sin(), angle.cos()}, 2).flatten(1).unsqueeze(0));
}

void TimeFeatureEmbeddingImpl::reset() {
  embed_ = register_module(
      "embed", torch::nn::Linear(torch::nn::LinearOptions(columns_, hidden_size_).bias(false)));
}

void DataEmbeddingImpl::reset() {
  const int64_t hidden = options_.hidden_size;
  value_ = register_module("value_embedding", std::make_shared<TokenEmbeddingImpl>(hidden));
  if (options_.has_position) {
    position_ =
        register_module("position_embedding", std::make_shared<PositionalEmbeddingImpl>(hidden));
  }
  if (options_.exog_size > 0) {
    temporal_ = register_module("temporal_embedding", std::make_shared<TimeFeatureEmbeddingImpl>(
                                                          options_.exog_size, hidden));
  }
}

torch::Tensor DataEmbeddingImpl::forward(const torch::Tensor& series, const torch::Tensor& exog) {
  std::vector<torch::Tensor> columns = {series.roll(1, 1), series, series.roll(-1, 1)};
  torch::Tensor weight = value_->weight();
  if (temporal_) {
    columns.push_back(exog);
    weight = torch::cat({weight, temporal_->weight()}, 1);
  }
  torch::Tensor tokens = skinny_linear(torch::cat(columns, 2), weight);
  if (position_) tokens = tokens + position_->rows(series.size(1));
  return flash::dropout(tokens, options_.dropout, is_training());
}

}  // namespace flash::models
