#pragma once
// LSTM and GRU, time first, with the parameter names and initial weights of torch.nn.LSTM and GRU.

#include <torch/nn/cloneable.h>

#include <string>
#include <vector>

namespace flash::models {

enum class RecurrentCell { kLstm, kGru };

/// hidden and, for an LSTM, cell, each [layers, B, D].
struct RecurrentState {
  torch::Tensor hidden, cell;
};

/// A stack of recurrent layers, all of width `size`.
class RecurrentImpl : public torch::nn::Cloneable<RecurrentImpl> {
 public:
  RecurrentImpl(RecurrentCell cell, int64_t size, int64_t layers);
  void reset() override;

  /// x [T, B, size] -> the last layer's outputs, of the same shape. Advances `state` by T steps.
  torch::Tensor forward(const torch::Tensor& x, RecurrentState& state);

 private:
  RecurrentCell cell_;
  int64_t size_, layers_;
};
TORCH_MODULE(Recurrent);

}  // namespace flash::models
