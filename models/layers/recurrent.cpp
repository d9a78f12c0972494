#include "layers/recurrent.h"

#include <torch/torch.h>

#include <cmath>

namespace flash::models {

RecurrentImpl::RecurrentImpl(RecurrentCell cell, int64_t size, int64_t layers)
    : cell_(cell), size_(size), layers_(layers) {
  reset();
}

void RecurrentImpl::reset() {
  const int64_t gates = (cell_ == RecurrentCell::kLstm ? 4 : 3) * size_;
  const double bound = 1.0 / std::sqrt(static_cast<double>(size_));
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const std::string suffix = "_l" + std::to_string(layer);
    const auto add = [&](const char* name, at::IntArrayRef sizes) {
      torch::Tensor values = torch::empty(sizes);
      torch::nn::init::uniform_(values, -bound, bound);
      register_parameter(name + suffix, values);
    };
    add("weight_ih", {gates, size_});
    add("weight_hh", {gates, size_});
    add("bias_ih", {gates});
    add("bias_hh", {gates});
  }
}

torch::Tensor RecurrentImpl::forward(const torch::Tensor& x, RecurrentState& state) {
  constexpr bool kBiases = true, kBidirectional = false, kBatchFirst = false;
  std::vector<torch::Tensor> weights;
  for (const auto& parameter : named_parameters(/*recurse=*/false)) weights.push_back(*parameter);
  torch::Tensor out;
  if (cell_ == RecurrentCell::kGru) {
    std::tie(out, state.hidden) = at::gru(x, state.hidden, weights, kBiases, layers_, 0.0,
                                          is_training(), kBidirectional, kBatchFirst);
  } else {
    std::tie(out, state.hidden, state.cell) =
        at::lstm(x, {state.hidden, state.cell}, weights, kBiases, layers_, 0.0, is_training(),
                 kBidirectional, kBatchFirst);
  }
  return out;
}

}  // namespace flash::models
