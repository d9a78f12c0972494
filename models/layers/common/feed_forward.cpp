#include "layers/common/feed_forward.h"

#include <torch/torch.h>

#include "layers/common/linear.h"
#include "message_text.h"

namespace flash::models {

Activation activation_named(const std::string& model, const std::string& name) {
  TORCH_CHECK_VALUE(name == "relu" || name == "gelu", model,
                    ": expected activation \"relu\" or \"gelu\", got \"", excerpt(name), "\"");
  return name == "relu" ? Activation::kRelu : Activation::kGelu;
}

void PointwiseConvolutionImpl::reset() {
  // A convolution draws the initial weights.
  const torch::nn::Conv1d drawn(torch::nn::Conv1dOptions(in_, out_, 1).bias(bias_));
  weight_ = register_parameter("weight", drawn->weight.detach());
  if (bias_) bias_values_ = register_parameter("bias", drawn->bias.detach());
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

torch::Tensor FeedForward::forward(const torch::Tensor& x, bool training) const {
  return feed_forward(x, first_->weights(), second_->weights(), options_.activation,
                      training ? options_.dropout : 0.0);
}

torch::Tensor feed_forward(const torch::Tensor& x, const LinearWeights& first,
                           const LinearWeights& second, Activation activation, double dropout) {
  const bool drops = dropout > 0.0;
  // blocked_feed_forward has no 16-bit types and no second derivative; without dropout, the
  // operations one by one have both.
  if (fits_kernels(x) && (drops || (!torch::GradMode::is_enabled() && is_plain(x)))) {
    return blocked_feed_forward(x, first, second, activation, dropout);
  }
  const torch::Tensor active =
      activation_dropout(linear(x, first.weight, first.bias), activation, dropout, drops);
  return linear(active, second.weight, second.bias);
}

}  // namespace flash::models
