#pragma once
// Distilling: halves the sequence between Informer's encoder layers (arXiv:2012.07436, equation 5).

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>

namespace flash::models {

/// max-pool(ELU(batch norm(convolution of width 3))). As in neuralforecast, the circular padding is
/// 2, twice what a width of 3 needs, so T steps become floor((T + 1) / 2) + 1.
class DistillingLayerImpl : public torch::nn::Cloneable<DistillingLayerImpl> {
 public:
  explicit DistillingLayerImpl(int64_t hidden_size) : hidden_size_(hidden_size) { reset(); }
  void reset() override;
  /// x [B, T, D] -> [B, floor((T + 1) / 2) + 1, D]
  torch::Tensor forward(const torch::Tensor& x);

 private:
  int64_t hidden_size_;
  torch::nn::Conv1d convolution_{nullptr};
  torch::nn::BatchNorm1d norm_{nullptr};
};

}  // namespace flash::models
