#include "layers/common/feed_forward.h"

#include <torch/torch.h>

#include "layers/common/linear.h"
#include "message_text.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The activation with the bits of blocked_feed_forward, which forecasts use without gradients.
/// Differentiable twice.
class Activated : public torch::autograd::Function<Activated> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Activation activation) {
    context->save_for_backward({x});
    context->saved_data["relu"] = activation == Activation::kRelu;
    const at::Tensor in = x.contiguous(), out = at::empty_like(in);
    BlockedActivationDropout(activation, /*p=*/0.0).forward(in, /*first=*/0, out);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const at::Tensor x = context->get_saved_variables()[0];
    const bool relu = context->saved_data["relu"].toBool();
    return {relu ? at::threshold_backward(gradients[0], x, 0) : at::gelu_backward(gradients[0], x),
            at::Tensor()};
  }
};

}  // namespace

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
  const bool drops = dropout > 0.0, plain = fits_kernels(x) && is_plain(x) && x.numel() > 0;
  const int64_t rows = plain ? x.numel() / x.size(-1) : 0;
  const bool few = plain && (has_few_rows(rows, first.weight) || has_few_rows(rows, second.weight));
  // blocked_feed_forward has no 16-bit types and no second derivative; without dropout, the
  // operations one by one have both.
  if (fits_kernels(x) && (drops || (!torch::GradMode::is_enabled() && plain && !few))) {
    return blocked_feed_forward(x, first, second, activation, dropout);
  }
  const torch::Tensor inner = linear(x, first.weight, first.bias);
  const torch::Tensor active = plain && !drops && is_plain(inner)
                                   ? Activated::apply(inner, activation)
                                   : activation_dropout(inner, activation, dropout, drops);
  return linear(active, second.weight, second.bias);
}

}  // namespace flash::models
