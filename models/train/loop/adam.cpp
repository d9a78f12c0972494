#include "train/loop/adam.h"

#include <ATen/ATen.h>
#include <ATen/ops/_fused_adam.h>

namespace flash::models {
namespace {

at::Tensor as_real(const at::Tensor& tensor) {
  return tensor.is_complex() ? at::view_as_real(tensor) : tensor;
}

}  // namespace

Adam::Adam(const std::vector<std::pair<std::string, at::Tensor>>& parameters) {
  for (const auto& [name, parameter] : parameters) {
    TORCH_CHECK_VALUE(parameter.is_contiguous(), "Adam: expected a contiguous parameter ", name);
    names_.push_back(name);
    parameters_.push_back(parameter);
    values_.push_back(as_real(parameter.detach()));
    means_.push_back(at::zeros_like(values_.back()));
    squares_.push_back(at::zeros_like(values_.back()));
    steps_.push_back(at::zeros({}, at::kFloat));
  }
}

void Adam::zero_grad() {
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
}

void Adam::step(double learning_rate) {
  std::vector<at::Tensor> values, gradients, means, squares, steps;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor gradient = parameters_[i].grad();
    if (!gradient.defined()) continue;
    values.push_back(values_[i]);
    gradients.push_back(as_real(gradient.contiguous()));
    means.push_back(means_[i]);
    squares.push_back(squares_[i]);
    steps.push_back(steps_[i].add_(1));
  }
  at::_fused_adam_(values, gradients, means, squares, /*max_exp_avg_sqs=*/{}, steps, learning_rate,
                   /*beta1=*/0.9, /*beta2=*/0.999, /*weight_decay=*/0.0, /*eps=*/1e-8,
                   /*amsgrad=*/false, /*maximize=*/false);
}

std::map<std::string, at::Tensor> Adam::state() const {
  std::map<std::string, at::Tensor> tensors;
  for (size_t i = 0; i < names_.size(); ++i) {
    tensors.emplace("exp_avg/" + names_[i], means_[i]);
    tensors.emplace("exp_avg_sq/" + names_[i], squares_[i]);
    tensors.emplace("step/" + names_[i], steps_[i]);
  }
  return tensors;
}

}  // namespace flash::models
