#pragma once
// TFT's variable selection, which weights several variables at each step (arXiv:1912.09363, section
// 4.2). The variables are scalars; their embeddings are not materialised.

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>

#include "layers/tft/gated_residual_network.h"

namespace flash::models {

/// The vectors v and b [n, D] of the embeddings x v + b of n scalars.
struct ScalarVectors {
  torch::Tensor vectors, biases;
};

/// Concatenates groups of variables.
ScalarVectors join(const std::vector<ScalarVectors>& groups);

/// A weight per variable and row, and the weighted sum of one gated residual network per variable.
class VariableSelectionImpl : public torch::nn::Cloneable<VariableSelectionImpl> {
 public:
  VariableSelectionImpl(int64_t variables, int64_t hidden_size, double dropout,
                        GatedActivation activation);
  void reset() override;

  /// x [R, variables] -> [R, hidden_size]. Row r belongs to row r % P of context [P, hidden_size],
  /// which may be undefined.
  torch::Tensor forward(const torch::Tensor& x, const ScalarVectors& embedding,
                        const torch::Tensor& context = {});

 private:
  /// The weights of the variables, [R, variables]; each row sums to 1.
  torch::Tensor selection(const torch::Tensor& x, const ScalarVectors& embedding,
                          const torch::Tensor& context);

  int64_t variables_, hidden_size_;
  double dropout_;
  GatedActivation activation_;
  GatedResidualNetwork joint_{nullptr};
  torch::nn::ModuleList networks_{nullptr};
};
TORCH_MODULE(VariableSelection);

}  // namespace flash::models
