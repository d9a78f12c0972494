#include "layers/feed_forward.h"

#include <torch/torch.h>

#include "layers/linear.h"

namespace flash::models {

Activation activation_named(const std::string& model, const std::string& name) {
  TORCH_CHECK_VALUE(name == "relu" || name == "gelu", model,
                    ": expected activation \"relu\" or \"gelu\", got \"", name, "\"");
  return name == "relu" ? Activation::kRelu : Activation::kGelu;
}

void PointwiseConvolutionImpl::reset() {
  // Drawn as a convolution draws them.
  const torch::nn::Conv1d drawn(torch::nn::Conv1dOptions(in_, out_, 1).bias(bias_));
  weight_ = register_parameter("weight", drawn->weight.detach());
  if (bias_) bias_values_ = register_parameter("bias", drawn->bias.detach());
}

torch::Tensor PointwiseConvolutionImpl::forward(const torch::Tensor& x) const {
  return models::linear(x, weight_.squeeze(2), bias_values_);
}

torch::Tensor PointwiseConvolutionImpl::forward(const torch::Tensor& x,
                                                Activation activation) const {
  return activated_linear(x, weight_.squeeze(2), bias_values_, activation);
}

void FeedForward::register_in(torch::nn::Module& owner, const FeedForwardOptions& options) {
  options_ = options;
  first_ =
      owner.register_module("conv1", std::make_shared<PointwiseConvolutionImpl>(
                                         options.hidden_size, options.inner_size, options.bias));
  second_ =
      owner.register_module("conv2", std::make_shared<PointwiseConvolutionImpl>(
                                         options.inner_size, options.hidden_size, options.bias));
}

torch::Tensor FeedForward::add_to(const torch::Tensor& x, bool training) const {
  const Activation activation = options_.activation;
  const double dropout = options_.dropout;
  const bool drops = training && dropout > 0.0;
  const torch::Tensor active =
      drops || torch::GradMode::is_enabled()
          ? activation_dropout(first_->forward(x), activation, dropout, training)
          : first_->forward(x, activation);
  return dropout_add(second_->forward(active), x, dropout, training);
}

}  // namespace flash::models
