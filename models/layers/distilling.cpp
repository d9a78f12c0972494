#include "layers/distilling.h"

#include <torch/torch.h>

namespace flash::models {

void DistillingLayerImpl::reset() {
  convolution_ = register_module(
      "downConv", torch::nn::Conv1d(torch::nn::Conv1dOptions(hidden_size_, hidden_size_, 3)));
  norm_ = register_module("norm", torch::nn::BatchNorm1d(hidden_size_));
}

torch::Tensor DistillingLayerImpl::forward(const torch::Tensor& x) {
  // The neighbours of each step side by side make the convolution one matrix product; circular
  // padding puts the last two steps in front and the first two behind.
  const int64_t steps = x.size(1) + 2;
  const torch::Tensor padded =
      torch::cat({x.slice(1, x.size(1) - 2), x, x.slice(1, 0, 2)}, 1);
  const torch::Tensor neighbours =
      torch::cat({padded.slice(1, 0, steps), padded.slice(1, 1, steps + 1), padded.slice(1, 2)}, 2);
  const torch::Tensor weight = convolution_->weight.permute({0, 2, 1}).flatten(1);
  const torch::Tensor convolved = torch::linear(neighbours, weight, convolution_->bias);
  // Batch norm over batch and time is batch norm over the rows of a matrix.
  const torch::Tensor active = torch::elu(norm_(convolved.flatten(0, 1))).view_as(convolved);
  // [B, T, D] is an image of T x 1 points in the channels-last layout, which is pooled in place of
  // being transposed.
  const torch::Tensor image = active.transpose(1, 2).unsqueeze(3);
  return torch::max_pool2d(image, /*kernel_size=*/{3, 1}, /*stride=*/{2, 1}, /*padding=*/{1, 0})
      .squeeze(3)
      .transpose(1, 2)
      .contiguous();
}

}  // namespace flash::models
