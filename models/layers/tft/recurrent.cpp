#include "layers/tft/recurrent.h"

#include <torch/torch.h>

#include <cmath>

#include "layers/tft/lstm.h"

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
  std::vector<torch::Tensor> weights;  // four per layer
  for (const auto& parameter : named_parameters(/*recurse=*/false)) weights.push_back(*parameter);
  if (cell_ == RecurrentCell::kGru) {
    torch::Tensor out;
    std::tie(out, state.hidden) =
        at::gru(x, state.hidden, weights, /*has_biases=*/true, layers_, /*dropout=*/0.0,
                is_training(), /*bidirectional=*/false, /*batch_first=*/false);
    return out;
  }
  torch::Tensor out = x;
  std::vector<torch::Tensor> hidden, cell;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const torch::Tensor* w = &weights[4 * layer];
    const LstmOutputs outputs = lstm_layer(out, state.hidden[layer], state.cell[layer],
                                           {.input = w[0], .hidden = w[1], .bias = w[2] + w[3]});
    out = outputs.all;
    hidden.push_back(outputs.hidden);
    cell.push_back(outputs.cell);
  }
  state = {.hidden = torch::stack(hidden), .cell = torch::stack(cell)};
  return out;
}

}  // namespace flash::models
