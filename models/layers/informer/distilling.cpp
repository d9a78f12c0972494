#include "layers/informer/distilling.h"

#include <torch/torch.h>

#include "layers/common/norms.h"
#include "layers/informer/circular_convolution.h"
#include "layers/informer/time_pooling.h"

namespace flash::models {

void DistillingLayerImpl::reset() {
  convolution_ = register_module(
      "downConv", torch::nn::Conv1d(torch::nn::Conv1dOptions(hidden_size_, hidden_size_, 3)));
  norm_ = register_module("norm", torch::nn::BatchNorm1d(hidden_size_));
}

torch::Tensor DistillingLayerImpl::forward(const torch::Tensor& x) {
  const torch::Tensor convolved = circular_convolution(x, convolution_->weight, convolution_->bias);
  // Batch norm over batch and time equals batch norm over the rows of a matrix.
  const torch::Tensor normalized =
      batch_normalized(convolved.flatten(0, 1), *norm_).view_as(convolved);
  // ELU is monotonic, so it may follow the maximum, where it has half as many elements.
  return torch::elu(halve_by_maximum(normalized));
}

}  // namespace flash::models
